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
        Col("swap_consistent", "whether both orders agreed; NULL while one order is judged", "NULL", "NULL::boolean"),
        Col("latency_ms", "from acceptance to outcome", "o.latency_ms"),
        Col("panel_ms", "from plan to the last answer used", "o.panel_ms"),
        Col("judge_ms", "from the first judge call to the outcome", "o.judge_ms"),
        Col("tokens_in", "prompt tokens of members and judge", "o.tokens_in"),
        Col("tokens_out", "completion tokens of members and judge", "o.tokens_out"),
        Col("cost_panel_usd", "NULL when any price is unknown", "o.cost_panel_usd"),
        Col("cost_judge_usd", "NULL when any price is unknown", "o.cost_judge_usd"),
        Col("cost_usd", "NULL when any price is unknown", "o.cost_usd"),
        Col("price_version", "version of the price list", "o.price_version"),
        Col("accepted", "whether a person or gold label accepted it; NULL until one says", "NULL", "NULL::boolean"),
        Col("error", "why it failed, where it did", "o.error"),
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
        Col("attempts", "calls made for it", "a.attempts"),
        Col("latency_ms", "of the call, retries included", "a.latency_ms"),
        Col("ttft_ms", "time to first token; NULL while calls are not streamed", "NULL", "NULL::double precision"),
        Col("tokens_in", "prompt tokens", "a.tokens_in"),
        Col("tokens_out", "completion tokens", "a.tokens_out"),
        Col("cost_usd", "NULL when the price is unknown", "a.cost_usd"),
        Col("judge_score", "NULL while judges rank and do not score", "NULL", "NULL::double precision"),
        Col("is_winner", "whether the outcome is this answer", "a.is_winner"),
        Col("merge_share", "NULL while merges do not say what they took", "NULL", "NULL::double precision"),
        Col("cached", "whether it was reused and not bought", "0", "FALSE"),
        Col("round", "the round it is from", "a.round"),
        Col("content", "the answer", "json_extract(c.body, '$.content')", "c.body::json ->> 'content'"),
    ),
    "answers a JOIN outcomes o ON o.fusion_id = a.fusion_id"
    " LEFT JOIN candidates c ON c.fusion_id = a.fusion_id AND c.round = a.round AND c.call = a.member",
)

VIEWS: tuple[View, ...] = (V_OUTCOME, V_ANSWER)
