-- What does a right answer cost in each pool? NULL unless all have a gold label and a known price.
SELECT pool, SUM(outcomes) AS n, SUM(labelled) AS n_labelled, SUM(accepted) AS n_accepted,
  SUM(n_unpriced) AS n_without_price,
  CASE WHEN SUM(n_unpriced) = 0 THEN SUM(cost_usd) END AS total_usd,
  CASE WHEN SUM(n_unpriced) = 0 AND SUM(labelled) = SUM(outcomes)
    THEN SUM(cost_usd) / NULLIF(SUM(accepted), 0) END AS usd_per_accepted
FROM v_pool_day
GROUP BY pool
ORDER BY pool
