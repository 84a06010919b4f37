-- What did each batch cost? NULL where the price of a line is unknown; n_unpriced counts those.
SELECT batch_id, name, status, total, completed, failed, degraded, tokens_in, tokens_out, cost_usd,
  n_unpriced, max_cost_usd, created_at
FROM v_batch
ORDER BY created_at DESC, batch_id
