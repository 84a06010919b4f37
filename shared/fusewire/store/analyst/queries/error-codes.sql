-- Which errors do providers give, how often, and since when?
SELECT provider, model, error_code, error_status, provider_code, COUNT(*) AS n,
  MIN(day) AS first_day, MAX(day) AS last_day
FROM v_answer
WHERE status = 'error'
GROUP BY provider, model, error_code, error_status, provider_code
ORDER BY n DESC, provider, model, error_code, error_status
