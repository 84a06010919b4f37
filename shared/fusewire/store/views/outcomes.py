"""Views with a row for each outcome, answer, event and vote."""

from fusewire.store.views.view import View, boolean, day, integer, real, text, timestamp

_FUSION = "FROM fusions f WHERE f.fusion_id = o.fusion_id"
_LATE = "FROM candidates c WHERE c.fusion_id = o.fusion_id AND c.is_late"

V_OUTCOME = View(
    "v_outcome",
    "One row per fused prompt.",
    (
        boolean(
            "is_degraded",
            "whether something was missing or failed on the way; read it first",
            "o.is_degraded",
        ),
        text("degraded_reasons", "what, as a JSON list", "o.degraded_reasons"),
        text("status", "fused, selected, voted, single, failed, expired or cancelled", "o.status"),
        text("outcome_id", "the fusion's id", "o.fusion_id"),
        text("batch_id", "its batch, if any", "o.batch_id"),
        text("custom_id", "the submitter's own id", "o.custom_id"),
        text("tenant", "who submitted it", "o.tenant"),
        timestamp("submitted_at", "when it was accepted (UTC)", "o.submitted_at"),
        timestamp("finished_at", "when it was decided (UTC)", "o.finished_at"),
        day("o.finished_at"),
        text("pool", "the pool that answered", "o.pool"),
        text("mode", "best-of, merge, debate or verify", "o.mode"),
        text("strategy", "the same as mode", "o.mode"),
        text("config_hash", "equal for equal pool and models", "o.config_hash"),
        text("prompt_hash", "SHA-256 of messages and sampling", "o.prompt_hash"),
        text("content", "the fused answer", "o.content"),
        text("reason", "the judge's sentence, or the rule that decided", "o.reason"),
        text("judge_model", "the model that judged, if one did", "o.judge_model"),
        text("winner", "the member that won; NULL for a merge", "o.winner"),
        text("winner_model", "its model", "o.winner_model"),
        integer("n_asked", "members asked", "o.n_asked"),
        integer("n_answered", "members that answered in time", "o.n_answered"),
        boolean(
            "is_fallback",
            "whether a rule decided because the judge could not",
            "CASE WHEN o.judge_rung = 'fallback' THEN 1 ELSE 0 END",
            "COALESCE(o.judge_rung = 'fallback', FALSE)",
        ),
        text(
            "fallback_reason",
            "the rule, where one did",
            "CASE WHEN o.judge_rung = 'fallback' THEN o.reason END",
        ),
        real("agreement", "0 to 1; see the outcome contract", "o.agreement"),
        text("verdict_parse", "strict, repaired, reasked or fallback", "o.judge_rung"),
        boolean(
            "swap_consistent",
            "whether each judge named the same winner in both orders",
            "o.swap_consistent",
        ),
        real("latency_ms", "from acceptance to outcome", "o.latency_ms"),
        real("panel_ms", "from plan to the last answer used", "o.panel_ms"),
        real("judge_ms", "from the first judge call to the outcome", "o.judge_ms"),
        integer(
            "tokens_in",
            "prompt tokens of members and judge; null where a call was not counted",
            "o.tokens_in",
        ),
        integer("tokens_out", "completion tokens of members and judge, likewise", "o.tokens_out"),
        integer(
            "tokens_cached",
            "prompt tokens that came from a provider's cache, likewise",
            "o.tokens_cached",
        ),
        integer(
            "tokens_thought", "completion tokens that were thought, likewise", "o.tokens_thought"
        ),
        real("cost_panel_usd", "NULL when any price is unknown", "o.cost_panel_usd"),
        real("cost_judge_usd", "NULL when any price is unknown", "o.cost_judge_usd"),
        real("cost_usd", "NULL when any price is unknown", "o.cost_usd"),
        text("price_version", "version of the price list", "o.price_version"),
        boolean(
            "accepted",
            "whether it is right by the prompt's gold label; NULL without one",
            "o.accepted",
        ),
        text("error", "why it failed, where it did", "o.error"),
        text("answer_kind", "tool_call, json, number, choice, label or open", "o.answer_kind"),
        text(
            "closed_by",
            "complete, certain, likely, gate, quorum or deadline: why the panel ended",
            "o.closed_by",
        ),
        real(
            "missing_weight",
            "share of the pool's weight that had no part, 0 to 1",
            "o.missing_weight",
        ),
        text("guard", "passed, lost, ungrounded or unjudged: what became of a merge", "o.guard"),
        integer("hedges", "second calls made for stragglers", "o.hedges"),
        boolean("is_replay", "whether its answers were recorded earlier", "o.is_replay"),
        text("tool_calls", "the fused tool calls, as JSON", "o.tool_calls"),
        real(
            "cost_late_usd",
            "of calls that ended after it was decided, as those of members that were not waited"
            " for; not in cost_usd",
            f"(SELECT SUM(json_extract(c.body, '$.cost_usd')) {_LATE})",
            f"(SELECT SUM(CAST(c.body::json ->> 'cost_usd' AS double precision)) {_LATE})",
        ),
        text(
            "route",
            "predicted (fewer than all members were asked), explored, unlearned or too_risky; NULL"
            " without a learned route",
            f"(SELECT json_extract(f.plan, '$.route.reason') {_FUSION})",
            f"(SELECT f.plan::json -> 'route' ->> 'reason' {_FUSION})",
        ),
        real(
            "route_loss_points",
            "how much more often asking all members would have been right, as predicted; NULL where"
            " all were asked",
            f"(SELECT json_extract(f.plan, '$.route.loss_points') {_FUSION})",
            f"(SELECT CAST(f.plan::json -> 'route' ->> 'loss_points' AS double precision)"
            f" {_FUSION})",
        ),
    ),
    "outcomes o",
)

_CANDIDATE = (
    "FROM candidates c WHERE c.fusion_id = a.fusion_id AND c.round = a.round AND c.call = a.call"
)

V_ANSWER = View(
    "v_answer",
    "One row per member of an outcome's pool, also where it did not answer.",
    (
        text("answer_id", "outcome and member", "a.fusion_id || '/' || a.member"),
        text("outcome_id", "the fusion's id", "a.fusion_id"),
        day("o.finished_at"),
        text("pool", "the pool", "o.pool"),
        text("mode", "best-of, merge, debate or verify", "o.mode"),
        text("strategy", "the same as mode", "o.mode"),
        text("member", "the member's name in the pool", "a.member"),
        text("model", "the model's configured name", "a.model"),
        text("provider", "who ran it", "a.provider"),
        text("tier", "edge or hosted", "CASE a.tier WHEN 'remote' THEN 'hosted' ELSE a.tier END"),
        integer("shown_position", "where the judge saw it, from 1", "a.shown_position"),
        text("status", "ok, error, missing, or unasked by a gate or a route", "a.status"),
        text("error_code", "why it failed", "a.error_code"),
        integer("error_status", "the HTTP status that its provider gave", "a.error_status"),
        text("provider_code", "its provider's own word for why", "a.provider_code"),
        text("provider_param", "the parameter that its provider names", "a.provider_param"),
        integer("attempts", "calls made for it", "a.attempts"),
        real("latency_ms", "of the call, retries included", "a.latency_ms"),
        integer("tokens_in", "prompt tokens; null where nobody counted them", "a.tokens_in"),
        integer("tokens_out", "completion tokens, likewise", "a.tokens_out"),
        real("cost_usd", "NULL when the price is unknown", "a.cost_usd"),
        boolean("is_winner", "whether the outcome is this answer", "a.is_winner"),
        integer("round", "the round it is from", "a.round"),
        text(
            "content",
            "the answer as it stood at the end",
            # Not a join, which SQLite would make where the column is not asked for too.
            f"COALESCE(a.content, (SELECT json_extract(c.body, '$.content') {_CANDIDATE}))",
            "COALESCE(a.content, c.body::json ->> 'content')",
        ),
        text("call", "the call it is from", "a.call"),
        real("weight", "what its voice counted", "a.weight"),
        boolean("agreed", "whether its first answer was what most of the others said", "a.agreed"),
        integer(
            "vote_group",
            "equal for first answers that say the same, 0 for the heaviest",
            "a.vote_group",
        ),
        boolean("is_right", "whether its first answer is right by the gold label", "a.is_right"),
    ),
    "answers a JOIN outcomes o ON o.fusion_id = a.fusion_id",
    "answers a JOIN outcomes o ON o.fusion_id = a.fusion_id"
    " LEFT JOIN candidates c"
    " ON c.fusion_id = a.fusion_id AND c.round = a.round AND c.call = a.call",
)

# A join looks the events of a fusion up, and does not make those of all first, on SQLite only if a
# column has the same type in each SELECT, and on PostgreSQL only if no SELECT has a WHERE.
_NO_ROUND = "CAST(NULL AS integer)"
_NO_CALL = "CAST(NULL AS varchar(80))"
_NO_NAME = "CAST(NULL AS varchar(63))"
_NO_PLACE = f"{_NO_ROUND}, {_NO_CALL}, {_NO_NAME}"
_NO_TARGET = "CAST(NULL AS varchar(128))"
_NO_ACTOR = "CAST(NULL AS varchar(80))"
_NO_FIELDS = "CAST(NULL AS text)"
_NOBODY = f"{_NO_NAME}, {_NO_ACTOR}, {_NO_TARGET}, {_NO_FIELDS}"
_EVENTS = f"""(
  SELECT fusion_id, submitted_at AS at, 'accepted' AS event, {_NO_ROUND} AS round,
    {_NO_CALL} AS call, {_NO_NAME} AS model, CAST(pool AS varchar(63)) AS detail,
    {_NO_NAME} AS tenant, {_NO_ACTOR} AS actor, {_NO_TARGET} AS target, {_NO_FIELDS} AS fields
    FROM prompts
  UNION ALL
  SELECT fusion_id, published_at, 'published', {_NO_PLACE}, {_NO_NAME}, {_NOBODY} FROM prompts
  UNION ALL
  SELECT fusion_id, cancelled_at, 'cancelled', {_NO_PLACE}, {_NO_NAME}, {_NOBODY} FROM prompts
  UNION ALL
  SELECT fusion_id, asked_at, 'asked', round, {_NO_CALL}, {_NO_NAME}, {_NO_NAME}, {_NOBODY}
    FROM rounds
  UNION ALL
  SELECT fusion_id, received_at,
    CASE WHEN is_late THEN 'late' WHEN error_code IS NULL THEN 'answered' ELSE 'failed' END,
    round, call, model, error_code, {_NOBODY} FROM candidates
  UNION ALL
  SELECT fusion_id, finished_at, 'decided', {_NO_PLACE}, status, {_NOBODY} FROM outcomes
  UNION ALL
  SELECT fusion_id, voted_at, 'voted', {_NO_PLACE}, choice,
    {_NO_NAME}, CAST('key:' || key_id AS varchar(80)), {_NO_TARGET}, {_NO_FIELDS} FROM vote_changes
  UNION ALL
  SELECT fusion_id, at, action || '', {_NO_PLACE}, {_NO_NAME},
    tenant, actor, target, detail FROM audit_log
) e WHERE e.at IS NOT NULL"""

V_EVENT = View(
    "v_event",
    "One row per step of a fusion, from acceptance to the last vote, and per action on keys,"
    " budgets, erasures and configuration.",
    (
        text("outcome_id", "the fusion's id; NULL for an action on no fusion", "e.fusion_id"),
        timestamp("at", "when (UTC)", "e.at"),
        text(
            "event",
            "accepted, published, cancelled, asked (a round of calls), answered, failed or late"
            " (a call), decided or voted; for an action its name, such as key.revoked",
            "e.event",
        ),
        integer("round", "the round, where it is of one", "e.round"),
        text("call", "the call, where it is of one", "e.call"),
        text("model", "the model that was called", "e.model"),
        text("detail", "pool, error code, status of the outcome, or choice of a vote", "e.detail"),
        text("tenant", "whose matter an action is; v_outcome has it for a fusion", "e.tenant"),
        text(
            "actor",
            "who acted or voted: key: and the id of an API key, operator: and a user's name, or"
            " service: and its name",
            "e.actor",
        ),
        text("target", "what an action was done to", "e.target"),
        text("fields", "further fields of an action, as JSON", "e.fields"),
    ),
    _EVENTS,
)

V_VOTE = View(
    "v_vote",
    "One row per outcome and voter: the vote as it stands.",
    (
        text("outcome_id", "the fusion's id", "t.fusion_id"),
        text("choice", "the best answer: a member, fused (the outcome's), tie or none", "t.choice"),
        text("voter_hash", "equal for equal voters", "t.voter_hash"),
        timestamp("created_at", "when it was first given (UTC)", "t.created_at"),
        timestamp("changed_at", "when it was last given (UTC)", "t.changed_at"),
        text("tenant", "who submitted the prompt", "o.tenant"),
        text("pool", "the pool", "o.pool"),
        text("winner", "the member that won; NULL for a merge", "o.winner"),
        text("judge_model", "the model that judged, if one did", "o.judge_model"),
        boolean(
            "agrees",
            "whether it is for the outcome's answer; NULL for a tie",
            "CASE WHEN t.choice = 'tie' THEN NULL WHEN t.choice = 'fused' THEN 1"
            " WHEN t.choice = o.winner THEN 1 ELSE 0 END",
            "CASE WHEN t.choice = 'tie' THEN NULL"
            " ELSE t.choice = 'fused' OR COALESCE(t.choice = o.winner, FALSE) END",
        ),
    ),
    "votes t JOIN outcomes o ON o.fusion_id = t.fusion_id",
)
