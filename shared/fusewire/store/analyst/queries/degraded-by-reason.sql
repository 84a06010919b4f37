-- How many outcomes are degraded, and why? Reasons are a JSON list, the gravest first.
SELECT pool, degraded_reasons, COUNT(*) AS outcomes, MAX(finished_at) AS newest_at
FROM v_outcome
WHERE is_degraded
GROUP BY pool, degraded_reasons
ORDER BY outcomes DESC, pool, degraded_reasons
