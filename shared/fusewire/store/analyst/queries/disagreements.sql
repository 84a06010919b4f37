-- On which prompts with a closed answer did members say different things? The newest 50.
SELECT outcome_id, custom_id, pool, answer_kind, agreement, n_answered, status, winner, content
FROM v_outcome
WHERE agreement < 1 AND answer_kind <> 'open'
ORDER BY finished_at DESC, outcome_id
LIMIT 50
