"""The views that analysts query: contract `fusewire_v1`.

Names and columns are the same on both databases, and changes only add columns. `migrate.upgrade`
updates the views after every migration (docs/decisions/0010).
"""

from dataclasses import dataclass

CONTRACT = "fusewire_v1"


@dataclass(frozen=True)
class ViewColumn:
    """A column: its name, what it means, and its expression per database where they differ."""

    name: str
    comment: str
    sql: str
    postgresql: str | None = None

    def select(self, dialect: str) -> str:
        """The column in a SELECT for `sqlite` or `postgresql`."""
        has_own = dialect == "postgresql" and self.postgresql
        return f"{self.postgresql if has_own else self.sql} AS {self.name}"


@dataclass(frozen=True)
class View:
    """A view: one row is what `comment` says."""

    name: str
    comment: str
    columns: tuple[ViewColumn, ...]
    source: str

    def create(self, dialect: str) -> str:
        """The CREATE VIEW statement for `sqlite` or `postgresql`."""
        expressions = ",\n  ".join(column.select(dialect) for column in self.columns)
        return f"CREATE VIEW {self.name} AS\nSELECT\n  {expressions}\nFROM {self.source}"


def _day(column: str) -> ViewColumn:
    return ViewColumn(
        "day",
        "UTC day of finished_at",
        f"date({column})",
        f"CAST({column} AT TIME ZONE 'UTC' AS date)",
    )


def _option(name: str) -> str:
    return f"b.options::json #>> '{{metadata,{name}}}'"


_LATE = "FROM candidates c WHERE c.fusion_id = o.fusion_id AND c.is_late"

V_OUTCOME = View(
    "v_outcome",
    "One row per fused prompt.",
    (
        ViewColumn(
            "is_degraded",
            "whether something was missing or failed on the way; read it first",
            "o.is_degraded",
        ),
        ViewColumn("degraded_reasons", "what, as a JSON list", "o.degraded_reasons"),
        ViewColumn(
            "status", "fused, selected, voted, single, failed, expired or cancelled", "o.status"
        ),
        ViewColumn("outcome_id", "the fusion's id", "o.fusion_id"),
        ViewColumn("batch_id", "its batch, if any", "o.batch_id"),
        ViewColumn("custom_id", "the submitter's own id", "o.custom_id"),
        ViewColumn("tenant", "who submitted it", "o.tenant"),
        ViewColumn("submitted_at", "when it was accepted (UTC)", "o.submitted_at"),
        ViewColumn("finished_at", "when it was decided (UTC)", "o.finished_at"),
        _day("o.finished_at"),
        ViewColumn("pool", "the pool that answered", "o.pool"),
        ViewColumn("mode", "best-of, merge or debate", "o.mode"),
        ViewColumn("strategy", "the same as mode", "o.mode"),
        ViewColumn("config_hash", "equal for equal pool and models", "o.config_hash"),
        ViewColumn("prompt_hash", "SHA-256 of messages and sampling", "o.prompt_hash"),
        ViewColumn("content", "the fused answer", "o.content"),
        ViewColumn("reason", "the judge's sentence, or the rule that decided", "o.reason"),
        ViewColumn("judge_model", "the model that judged, if one did", "o.judge_model"),
        ViewColumn("winner", "the member that won; NULL for a merge", "o.winner"),
        ViewColumn("winner_model", "its model", "o.winner_model"),
        ViewColumn("n_asked", "members asked", "o.n_asked"),
        ViewColumn("n_answered", "members that answered in time", "o.n_answered"),
        ViewColumn(
            "is_fallback",
            "whether a rule decided because the judge could not",
            "CASE WHEN o.judge_rung = 'fallback' THEN 1 ELSE 0 END",
            "COALESCE(o.judge_rung = 'fallback', FALSE)",
        ),
        ViewColumn(
            "fallback_reason",
            "the rule, where one did",
            "CASE WHEN o.judge_rung = 'fallback' THEN o.reason END",
        ),
        ViewColumn("agreement", "0 to 1; see the outcome contract", "o.agreement"),
        ViewColumn("verdict_parse", "strict, repaired, reasked or fallback", "o.judge_rung"),
        ViewColumn(
            "swap_consistent",
            "whether each judge named the same winner in both orders",
            "o.swap_consistent",
        ),
        ViewColumn("latency_ms", "from acceptance to outcome", "o.latency_ms"),
        ViewColumn("panel_ms", "from plan to the last answer used", "o.panel_ms"),
        ViewColumn("judge_ms", "from the first judge call to the outcome", "o.judge_ms"),
        ViewColumn(
            "tokens_in",
            "prompt tokens of members and judge; null where a call was not counted",
            "o.tokens_in",
        ),
        ViewColumn(
            "tokens_out", "completion tokens of members and judge, likewise", "o.tokens_out"
        ),
        ViewColumn(
            "tokens_cached",
            "prompt tokens that came from a provider's cache, likewise",
            "o.tokens_cached",
        ),
        ViewColumn(
            "tokens_thought", "completion tokens that were thought, likewise", "o.tokens_thought"
        ),
        ViewColumn("cost_panel_usd", "NULL when any price is unknown", "o.cost_panel_usd"),
        ViewColumn("cost_judge_usd", "NULL when any price is unknown", "o.cost_judge_usd"),
        ViewColumn("cost_usd", "NULL when any price is unknown", "o.cost_usd"),
        ViewColumn("price_version", "version of the price list", "o.price_version"),
        ViewColumn(
            "accepted",
            "whether it is right by the prompt's gold label; NULL without one",
            "o.accepted",
        ),
        ViewColumn("error", "why it failed, where it did", "o.error"),
        ViewColumn(
            "answer_kind", "tool_call, json, number, choice, label or open", "o.answer_kind"
        ),
        ViewColumn(
            "closed_by",
            "complete, certain, likely, gate, quorum or deadline: why the panel ended",
            "o.closed_by",
        ),
        ViewColumn(
            "missing_weight",
            "share of the pool's weight that had no part, 0 to 1",
            "o.missing_weight",
        ),
        ViewColumn(
            "guard", "passed, lost, ungrounded or unjudged: what became of a merge", "o.guard"
        ),
        ViewColumn("hedges", "second calls made for stragglers", "o.hedges"),
        ViewColumn("is_replay", "whether its answers were recorded earlier", "o.is_replay"),
        ViewColumn("tool_calls", "the fused tool calls, as JSON", "o.tool_calls"),
        ViewColumn(
            "cost_late_usd",
            "of calls that ended after it was decided, as those of members that were not waited"
            " for; not in cost_usd",
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
        ViewColumn("answer_id", "outcome and member", "a.fusion_id || '/' || a.member"),
        ViewColumn("outcome_id", "the fusion's id", "a.fusion_id"),
        _day("o.finished_at"),
        ViewColumn("pool", "the pool", "o.pool"),
        ViewColumn("mode", "best-of, merge or debate", "o.mode"),
        ViewColumn("strategy", "the same as mode", "o.mode"),
        ViewColumn("member", "the member's name in the pool", "a.member"),
        ViewColumn("model", "the model's configured name", "a.model"),
        ViewColumn("provider", "who ran it", "a.provider"),
        ViewColumn(
            "tier", "edge or hosted", "CASE a.tier WHEN 'remote' THEN 'hosted' ELSE a.tier END"
        ),
        ViewColumn("shown_position", "where the judge saw it, from 1", "a.shown_position"),
        ViewColumn("status", "ok, error or missing", "a.status"),
        ViewColumn("error_code", "why it failed", "a.error_code"),
        ViewColumn("error_status", "the HTTP status that its provider gave", "a.error_status"),
        ViewColumn("provider_code", "its provider's own word for why", "a.provider_code"),
        ViewColumn("provider_param", "the parameter that its provider names", "a.provider_param"),
        ViewColumn("attempts", "calls made for it", "a.attempts"),
        ViewColumn("latency_ms", "of the call, retries included", "a.latency_ms"),
        ViewColumn("tokens_in", "prompt tokens; null where nobody counted them", "a.tokens_in"),
        ViewColumn("tokens_out", "completion tokens, likewise", "a.tokens_out"),
        ViewColumn("cost_usd", "NULL when the price is unknown", "a.cost_usd"),
        ViewColumn("is_winner", "whether the outcome is this answer", "a.is_winner"),
        ViewColumn("round", "the round it is from", "a.round"),
        ViewColumn(
            "content",
            "the answer as it stood at the end",
            "COALESCE(a.content, json_extract(c.body, '$.content'))",
            "COALESCE(a.content, c.body::json ->> 'content')",
        ),
        ViewColumn("call", "the call it is from", "a.call"),
        ViewColumn("weight", "what its voice counted", "a.weight"),
        ViewColumn(
            "agreed", "whether its first answer was what most of the others said", "a.agreed"
        ),
        ViewColumn(
            "vote_group",
            "equal for first answers that say the same, 0 for the heaviest",
            "a.vote_group",
        ),
        ViewColumn("is_right", "whether its first answer is right by the gold label", "a.is_right"),
    ),
    "answers a JOIN outcomes o ON o.fusion_id = a.fusion_id"
    " LEFT JOIN candidates c"
    " ON c.fusion_id = a.fusion_id AND c.round = a.round AND c.call = a.call",
)

V_VERDICT = View(
    "v_verdict",
    "One row per judge call that was asked for a winner.",
    (
        ViewColumn("outcome_id", "the fusion's id", "v.fusion_id"),
        ViewColumn("call", "the call", "v.call"),
        _day("v.decided_at"),
        ViewColumn("pool", "the pool", "o.pool"),
        ViewColumn("mode", "best-of, merge or debate", "o.mode"),
        ViewColumn("kind", "listwise, pair, or guard of a merge", "v.kind"),
        ViewColumn("judge_model", "who judged", "v.judge_model"),
        ViewColumn("n_shown", "answers it was shown, a control included", "v.n_shown"),
        ViewColumn(
            "winner",
            "whom it named: a member, ~merged or ~control; NULL if it could not be read",
            "v.winner",
        ),
        ViewColumn("winner_position", "where that stood, from 1", "v.winner_position"),
        ViewColumn(
            "longest_position",
            "where the longest answer stood; NULL if two were as long",
            "v.longest_position",
        ),
        ViewColumn("n_own_family", "answers of the judge's own family", "v.n_own_family"),
        ViewColumn(
            "is_own_family_winner", "whether it named one of those", "v.is_own_family_winner"
        ),
        ViewColumn("control", "null or master_key, where a control was among them", "v.control"),
        ViewColumn("is_control_winner", "whether it named the control", "v.is_control_winner"),
        ViewColumn("verdict_parse", "strict, repaired or reasked", "v.rung"),
        ViewColumn("void", "why it does not count", "v.void"),
        ViewColumn(
            "is_consistent",
            "whether the same judge named the same winner in the opposite order",
            "v.is_consistent",
        ),
    ),
    "verdicts v JOIN outcomes o ON o.fusion_id = v.fusion_id",
)


def _count(name: str, comment: str, condition: str) -> ViewColumn:
    return ViewColumn(name, comment, f"SUM(CASE WHEN {condition} THEN 1 ELSE 0 END)")


V_JUDGE_BIAS = View(
    "v_judge_bias",
    "One row per pool and judge: counts to see by whether its verdicts follow place, length or"
    " family. Verdicts that could be read and held no control.",
    (
        ViewColumn("pool", "the pool", "o.pool"),
        ViewColumn("judge_model", "who judged", "v.judge_model"),
        ViewColumn("presentations", "verdicts", "COUNT(*)"),
        _count("first_wins", "those for the first shown", "v.winner_position = 1"),
        _count("second_wins", "those for the second shown", "v.winner_position = 2"),
        ViewColumn(
            "first_win_rate",
            "first_wins / presentations; 1 / n_shown were fair",
            "SUM(CASE WHEN v.winner_position = 1 THEN 1.0 ELSE 0.0 END) / COUNT(*)",
        ),
        ViewColumn(
            "fair_first_rate", "what first_win_rate would be without a bias", "AVG(1.0 / v.n_shown)"
        ),
        ViewColumn(
            "swapped",
            "pairs judged in both orders",
            "SUM(CASE WHEN v.is_consistent IS NULL THEN 0 ELSE 1 END) / 2",
        ),
        ViewColumn(
            "flips",
            "those with another winner each",
            "SUM(CASE WHEN NOT v.is_consistent THEN 1 ELSE 0 END) / 2",
        ),
        _count(
            "longer_wins",
            "verdicts for the one longest answer",
            "v.winner_position = v.longest_position",
        ),
        _count(
            "longer_shown", "verdicts among which one was longest", "v.longest_position IS NOT NULL"
        ),
        _count("own_family_wins", "verdicts for the judge's own family", "v.is_own_family_winner"),
        _count(
            "own_family_shown",
            "verdicts with own family and others",
            "v.n_own_family BETWEEN 1 AND v.n_shown - 1",
        ),
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
        ViewColumn("batch_id", "the batch's id", "b.batch_id"),
        ViewColumn(
            "name",
            "`name` in its metadata",
            "json_extract(b.options, '$.metadata.name')",
            _option("name"),
        ),
        ViewColumn(
            "retry_of",
            "the batch it retries",
            "json_extract(b.options, '$.metadata.retry_of')",
            _option("retry_of"),
        ),
        ViewColumn("tenant", "who submitted it", "b.tenant"),
        ViewColumn(
            "status",
            "validating, in_progress, finalizing, completed, failed, expired, cancel…",
            "b.status",
        ),
        ViewColumn(
            "stop_reason",
            "why it was stopped: request, interrupted, budget, expired",
            "b.stop_reason",
        ),
        ViewColumn("waiting_for", "what holds it up, where something does", "b.waiting_for"),
        ViewColumn("priority", "high, normal or low", "b.priority"),
        ViewColumn("total", "lines", "b.total"),
        ViewColumn("completed", "lines with an answer", "b.completed"),
        ViewColumn("failed", "lines without one, of those that ended", "b.failed"),
        ViewColumn("degraded", "lines whose outcome is degraded", "b.degraded"),
        ViewColumn("created_at", "when it was submitted (UTC)", "b.created_at"),
        ViewColumn("expires_at", "when it is stopped at the latest (UTC)", "b.expires_at"),
        ViewColumn(
            "finished_at",
            "when it ended (UTC)",
            "COALESCE(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)",
        ),
        ViewColumn(
            "eta_at",
            "when it will be done if it goes on as it went so far (UTC); NULL unless it runs",
            f"CASE WHEN {_IS_MOVING}"
            " THEN strftime('%Y-%m-%d %H:%M:%f000', julianday(b.in_progress_at)"
            f" + (julianday('now') - julianday(b.in_progress_at)) * b.total / {_DONE}) END",
            f"CASE WHEN {_IS_MOVING} THEN b.in_progress_at"
            f" + (now() - b.in_progress_at) * (b.total / CAST({_DONE} AS double precision)) END",
        ),
        ViewColumn(
            "tokens_in",
            "prompt tokens of members and judge, as far as they were counted",
            "b.tokens_in",
        ),
        ViewColumn(
            "tokens_out", "completion tokens of members and judge, likewise", "b.tokens_out"
        ),
        ViewColumn(
            "cost_usd",
            "NULL when any price is unknown",
            "CASE WHEN b.n_unpriced = 0 THEN b.cost_usd END",
        ),
        ViewColumn("n_unpriced", "lines whose cost is not known", "b.n_unpriced"),
        ViewColumn("max_cost_usd", "the limit that was set", "b.max_cost_usd"),
    ),
    "batches b",
)

VIEWS: tuple[View, ...] = (V_OUTCOME, V_ANSWER, V_VERDICT, V_JUDGE_BIAS, V_BATCH)
