-- What did each day cost, by pool? NULL where the price of an outcome is unknown.
SELECT day, pool, SUM(outcomes) AS n, SUM(n_unpriced) AS n_without_price,
  CASE WHEN SUM(n_unpriced) = 0 THEN SUM(cost_usd) END AS total_usd
FROM v_pool_day
GROUP BY day, pool
ORDER BY day DESC, pool
