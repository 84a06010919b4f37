-- Which members are slow, and which fail? Mean and longest latency of the calls that have one.
SELECT pool, member, model, COUNT(*) AS n, COUNT(latency_ms) AS n_with_latency,
  AVG(latency_ms) AS mean_ms, MAX(latency_ms) AS longest_ms,
  SUM(CASE WHEN status IN ('error', 'missing') THEN 1 ELSE 0 END) AS failed
FROM v_answer
GROUP BY pool, member, model
ORDER BY AVG(latency_ms) IS NULL, AVG(latency_ms) DESC, pool, member
