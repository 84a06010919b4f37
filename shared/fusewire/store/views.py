"""The views that analysts query: contract `fusewire_v1`, the same names and columns on both databases.

Changes are additive only. `migrate.upgrade` drops and creates them after every migration.
"""

from dataclasses import dataclass

CONTRACT = "fusewire_v1"


@dataclass(frozen=True)
class Col:
    """A column: its name, what it means, and its expression per database where they differ."""

    name: str
    comment: str
    sql: str
    postgresql: str | None = None


@dataclass(frozen=True)
class View:
    """A view: one row is what `comment` says."""

    name: str
    comment: str
    columns: tuple[Col, ...]
    source: str

    def create(self, dialect: str) -> str:
        """The CREATE VIEW statement for `sqlite` or `postgresql`."""
        chosen = ((c.postgresql if dialect == "postgresql" and c.postgresql else c.sql, c.name) for c in self.columns)
        listed = ",\n  ".join(f"{sql} AS {name}" for sql, name in chosen)
        return f"CREATE VIEW {self.name} AS\nSELECT\n  {listed}\nFROM {self.source}"


def _day(column: str) -> Col:
    return Col("day", "UTC day of finished_at", f"date({column})", f"CAST({column} AT TIME ZONE 'UTC' AS date)")


def _option(name: str) -> str:
    return f"b.options::json #>> '{{metadata,{name}}}'"


_LATE = "FROM candidates c WHERE c.fusion_id = o.fusion_id AND c.is_late"

V_OUTCOME = View(
    "v_outcome",
    "One row per fused prompt.",
    (
        Col("is_degraded", "whether something was missing or failed on the way; read it first", "o.is_degraded"),
        Col("degraded_reasons", "what, as a JSON list", "o.degraded_reasons"),
        Col("status", "fused, voted, single, failed, expired or cancelled", "o.status"),
        Col("outcome_id", "the fusion's id", "o.fusion_id"),
        Col("batch_id", "its batch, if any", "o.batch_id"),
        Col("custom_id", "the submitter's own id", "o.custom_id"),
        Col("tenant", "who submitted it", "o.tenant"),
        Col("submitted_at", "when it was accepted (UTC)", "o.submitted_at"),
        Col("finished_at", "when it was decided (UTC)", "o.finished_at"),
        _day("o.finished_at"),
        Col("pool", "the pool that answered", "o.pool"),
        Col("mode", "best-of, merge or debate", "o.mode"),
        Col("strategy", "the same as mode", "o.mode"),
        Col("config_hash", "equal for equal pool and models", "o.config_hash"),
        Col("prompt_hash", "SHA-256 of messages and sampling", "o.prompt_hash"),
        Col("content", "the fused answer", "o.content"),
        Col("reason", "the judge's sentence, or the rule that decided", "o.reason"),
        Col("judge_model", "the model that judged, if one did", "o.judge_model"),
        Col("winner", "the member that won; NULL for a merge", "o.winner"),
        Col("winner_model", "its model", "o.winner_model"),
        Col("n_asked", "members asked", "o.n_asked"),
        Col("n_answered", "members that answered in time", "o.n_answered"),
        Col(
            "is_fallback",
            "whether a rule decided because the judge could not",
            "CASE WHEN o.judge_rung = 'fallback' THEN 1 ELSE 0 END",
            "COALESCE(o.judge_rung = 'fallback', FALSE)",
        ),
        Col("fallback_reason", "the rule, where one did", "CASE WHEN o.judge_rung = 'fallback' THEN o.reason END"),
        Col("agreement", "0 to 1; see the outcome contract", "o.agreement"),
        Col("verdict_parse", "strict, repaired, reasked or fallback", "o.judge_rung"),
        Col("swap_consistent", "whether each judge named the same winner in both orders", "o.swap_consistent"),
        Col("latency_ms", "from acceptance to outcome", "o.latency_ms"),
        Col("panel_ms", "from plan to the last answer used", "o.panel_ms"),
        Col("judge_ms", "from the first judge call to the outcome", "o.judge_ms"),
        Col("tokens_in", "prompt tokens of members and judge; null where a call was not counted", "o.tokens_in"),
        Col("tokens_out", "completion tokens of members and judge, likewise", "o.tokens_out"),
        Col("tokens_cached", "prompt tokens that came from a provider's cache, likewise", "o.tokens_cached"),
        Col("tokens_thought", "completion tokens that were thought, likewise", "o.tokens_thought"),
        Col("cost_panel_usd", "NULL when any price is unknown", "o.cost_panel_usd"),
        Col("cost_judge_usd", "NULL when any price is unknown", "o.cost_judge_usd"),
        Col("cost_usd", "NULL when any price is unknown", "o.cost_usd"),
        Col("price_version", "version of the price list", "o.price_version"),
        Col("accepted", "whether it is right by the prompt's gold label; NULL without one", "o.accepted"),
        Col("error", "why it failed, where it did", "o.error"),
        Col("answer_kind", "tool_call, json, number, choice, label or open", "o.answer_kind"),
        Col("closed_by", "complete, certain, likely, gate, quorum or deadline: why the panel ended", "o.closed_by"),
        Col("missing_weight", "share of the pool's weight that had no part, 0 to 1", "o.missing_weight"),
        Col("guard", "passed, lost, ungrounded or unjudged: what became of a merge", "o.guard"),
        Col("hedges", "second calls made for stragglers", "o.hedges"),
        Col("is_replay", "whether its answers were recorded earlier", "o.is_replay"),
        Col("tool_calls", "the fused tool calls, as JSON", "o.tool_calls"),
        Col(
            "cost_late_usd",
            "of calls that ended after it was decided, as those of members that were not waited for; not in cost_usd",
            f"(SELECT SUM(json_extract(c.body, '$.cost_usd')) {_LATE})",
            f"(SELECT SUM(CAST(c.body::json ->> 'cost_usd' AS double precision)) {_LATE})",
        ),
    ),
    "outcomes o",
)

V_ANSWER = View(
    "v_answer",
    "One row per member of an outcome's pool, also where it did not answer.",
    (
        Col("answer_id", "outcome and member", "a.fusion_id || '/' || a.member"),
        Col("outcome_id", "the fusion's id", "a.fusion_id"),
        _day("o.finished_at"),
        Col("pool", "the pool", "o.pool"),
        Col("mode", "best-of, merge or debate", "o.mode"),
        Col("strategy", "the same as mode", "o.mode"),
        Col("member", "the member's name in the pool", "a.member"),
        Col("model", "the model's configured name", "a.model"),
        Col("provider", "who ran it", "a.provider"),
        Col("tier", "edge or hosted", "CASE a.tier WHEN 'remote' THEN 'hosted' ELSE a.tier END"),
        Col("shown_position", "where the judge saw it, from 1", "a.shown_position"),
        Col("status", "ok, error or missing", "a.status"),
        Col("error_code", "why it failed", "a.error_code"),
        Col("error_status", "the HTTP status that its provider gave", "a.error_status"),
        Col("provider_code", "its provider's own word for why", "a.provider_code"),
        Col("provider_param", "the parameter that its provider names", "a.provider_param"),
        Col("attempts", "calls made for it", "a.attempts"),
        Col("latency_ms", "of the call, retries included", "a.latency_ms"),
        Col("ttft_ms", "time to first token; NULL while calls are not streamed", "NULL", "NULL::double precision"),
        Col("tokens_in", "prompt tokens; null where nobody counted them", "a.tokens_in"),
        Col("tokens_out", "completion tokens, likewise", "a.tokens_out"),
        Col("cost_usd", "NULL when the price is unknown", "a.cost_usd"),
        Col("judge_score", "NULL while judges rank and do not score", "NULL", "NULL::double precision"),
        Col("is_winner", "whether the outcome is this answer", "a.is_winner"),
        Col("merge_share", "NULL while merges do not say what they took", "NULL", "NULL::double precision"),
        Col("cached", "whether it was reused and not bought", "0", "FALSE"),
        Col("round", "the round it is from", "a.round"),
        Col(
            "content",
            "the answer as it stood at the end",
            "COALESCE(a.content, json_extract(c.body, '$.content'))",
            "COALESCE(a.content, c.body::json ->> 'content')",
        ),
        Col("call", "the call it is from", "a.call"),
        Col("weight", "what its voice counted", "a.weight"),
        Col("agreed", "whether its first answer was what most of the others said", "a.agreed"),
        Col("vote_group", "equal for first answers that say the same, 0 for the heaviest", "a.vote_group"),
        Col("is_right", "whether its first answer is right by the gold label", "a.is_right"),
    ),
    "answers a JOIN outcomes o ON o.fusion_id = a.fusion_id"
    " LEFT JOIN candidates c ON c.fusion_id = a.fusion_id AND c.round = a.round AND c.call = a.call",
)

V_VERDICT = View(
    "v_verdict",
    "One row per judge call that was asked for a winner.",
    (
        Col("outcome_id", "the fusion's id", "v.fusion_id"),
        Col("call", "the call", "v.call"),
        _day("v.decided_at"),
        Col("pool", "the pool", "o.pool"),
        Col("mode", "best-of, merge or debate", "o.mode"),
        Col("kind", "listwise, pair, or guard of a merge", "v.kind"),
        Col("judge_model", "who judged", "v.judge_model"),
        Col("n_shown", "answers it was shown, a control included", "v.n_shown"),
        Col("winner", "whom it named: a member, ~merged or ~control; NULL if it could not be read", "v.winner"),
        Col("winner_position", "where that stood, from 1", "v.winner_position"),
        Col("longest_position", "where the longest answer stood; NULL if two were as long", "v.longest_position"),
        Col("n_own_family", "answers of the judge's own family", "v.n_own_family"),
        Col("is_own_family_winner", "whether it named one of those", "v.is_own_family_winner"),
        Col("control", "null or master_key, where a control was among them", "v.control"),
        Col("is_control_winner", "whether it named the control", "v.is_control_winner"),
        Col("verdict_parse", "strict, repaired or reasked", "v.rung"),
        Col("void", "why it does not count", "v.void"),
        Col("is_consistent", "whether the same judge named the same winner in the opposite order", "v.is_consistent"),
    ),
    "verdicts v JOIN outcomes o ON o.fusion_id = v.fusion_id",
)


def _count(name: str, comment: str, condition: str) -> Col:
    return Col(name, comment, f"SUM(CASE WHEN {condition} THEN 1 ELSE 0 END)")


V_JUDGE_BIAS = View(
    "v_judge_bias",
    "One row per pool and judge: counts to see by whether its verdicts follow place, length or family."
    " Verdicts that could be read and held no control.",
    (
        Col("pool", "the pool", "o.pool"),
        Col("judge_model", "who judged", "v.judge_model"),
        Col("presentations", "verdicts", "COUNT(*)"),
        _count("first_wins", "those for the first shown", "v.winner_position = 1"),
        _count("second_wins", "those for the second shown", "v.winner_position = 2"),
        Col(
            "first_win_rate",
            "first_wins / presentations; 1 / n_shown were fair",
            "SUM(CASE WHEN v.winner_position = 1 THEN 1.0 ELSE 0.0 END) / COUNT(*)",
        ),
        Col("fair_first_rate", "what first_win_rate would be without a bias", "AVG(1.0 / v.n_shown)"),
        Col("swapped", "pairs judged in both orders", "SUM(CASE WHEN v.is_consistent IS NULL THEN 0 ELSE 1 END) / 2"),
        Col("flips", "those with another winner each", "SUM(CASE WHEN NOT v.is_consistent THEN 1 ELSE 0 END) / 2"),
        _count("longer_wins", "verdicts for the one longest answer", "v.winner_position = v.longest_position"),
        _count("longer_shown", "verdicts among which one was longest", "v.longest_position IS NOT NULL"),
        _count("own_family_wins", "verdicts for the judge's own family", "v.is_own_family_winner"),
        _count("own_family_shown", "verdicts with own family and others", "v.n_own_family BETWEEN 1 AND v.n_shown - 1"),
        _count("repaired", "verdicts mended before they could be read", "v.rung = 'repaired'"),
        _count("reasked", "verdicts asked for a second time", "v.rung = 'reasked'"),
    ),
    "verdicts v JOIN outcomes o ON o.fusion_id = v.fusion_id"
    " WHERE v.winner IS NOT NULL AND v.control IS NULL GROUP BY o.pool, v.judge_model",
)

_DONE = "(b.completed + b.failed)"
_IS_MOVING = f"b.status = 'in_progress' AND {_DONE} > 0"

V_BATCH = View(
    "v_batch",
    "One row per batch.",
    (
        Col("batch_id", "the batch's id", "b.batch_id"),
        Col("name", "`name` in its metadata", "json_extract(b.options, '$.metadata.name')", _option("name")),
        Col("retry_of", "the batch it retries", "json_extract(b.options, '$.metadata.retry_of')", _option("retry_of")),
        Col("tenant", "who submitted it", "b.tenant"),
        Col("status", "validating, in_progress, finalizing, completed, failed, expired, cancel…", "b.status"),
        Col("stop_reason", "why it was stopped: request, interrupted, budget, expired", "b.stop_reason"),
        Col("waiting_for", "what holds it up, where something does", "b.waiting_for"),
        Col("priority", "high, normal or low", "b.priority"),
        Col("total", "lines", "b.total"),
        Col("completed", "lines with an answer", "b.completed"),
        Col("failed", "lines without one, of those that ended", "b.failed"),
        Col("degraded", "lines whose outcome is degraded", "b.degraded"),
        Col("created_at", "when it was submitted (UTC)", "b.created_at"),
        Col("expires_at", "when it is stopped at the latest (UTC)", "b.expires_at"),
        Col(
            "finished_at",
            "when it ended (UTC)",
            "COALESCE(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)",
        ),
        Col(
            "eta_at",
            "when it will be done if it goes on as it went so far (UTC); NULL unless it runs",
            f"CASE WHEN {_IS_MOVING} THEN strftime('%Y-%m-%d %H:%M:%f000', julianday(b.in_progress_at)"
            f" + (julianday('now') - julianday(b.in_progress_at)) * b.total / {_DONE}) END",
            f"CASE WHEN {_IS_MOVING} THEN b.in_progress_at"
            f" + (now() - b.in_progress_at) * (b.total / CAST({_DONE} AS double precision)) END",
        ),
        Col("tokens_in", "prompt tokens of members and judge, as far as they were counted", "b.tokens_in"),
        Col("tokens_out", "completion tokens of members and judge, likewise", "b.tokens_out"),
        Col("cost_usd", "NULL when any price is unknown", "CASE WHEN b.n_unpriced = 0 THEN b.cost_usd END"),
        Col("n_unpriced", "lines whose cost is not known", "b.n_unpriced"),
        Col("max_cost_usd", "the limit that was set", "b.max_cost_usd"),
    ),
    "batches b",
)

VIEWS: tuple[View, ...] = (V_OUTCOME, V_ANSWER, V_VERDICT, V_JUDGE_BIAS, V_BATCH)
