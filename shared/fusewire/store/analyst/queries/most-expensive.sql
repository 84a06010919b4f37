-- Which outcomes cost the most? Those without a known price are left out.
SELECT outcome_id, pool, mode, status, n_asked, tokens_in, tokens_out, cost_panel_usd,
  cost_judge_usd, cost_usd
FROM v_outcome
WHERE cost_usd IS NOT NULL
ORDER BY cost_usd DESC, outcome_id
LIMIT 20
