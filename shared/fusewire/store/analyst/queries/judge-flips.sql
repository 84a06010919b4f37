-- How often does each judge name another winner when it sees the answers in the opposite order?
SELECT pool, judge_model, swapped AS n_pairs_in_both_orders, flips, presentations AS n_verdicts,
  first_wins
FROM v_judge_bias
ORDER BY flips DESC, pool, judge_model
