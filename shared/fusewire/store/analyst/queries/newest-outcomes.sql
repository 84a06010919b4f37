-- What was answered last? The newest 50 outcomes.
SELECT finished_at, outcome_id, custom_id, tenant, pool, mode, status, is_degraded, winner,
  agreement, latency_ms, cost_usd, content
FROM v_outcome
ORDER BY finished_at DESC, outcome_id
LIMIT 50
