"""The tables. Judge writes `fusions` to `verdicts`, ingest the rest; analysts read only views."""

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC on both databases."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Convert a value for the database."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Convert a value from the database; SQLite's lacks the time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UtcDay(FunctionElement[date]):
    """The UTC day of a time, as the views' column `day` has it: an index on it finds their rows."""

    inherit_cache = True


@compiles(UtcDay, "sqlite")
def _day_sqlite(element: UtcDay, compiler: SQLCompiler, **options: Any) -> str:
    return f"date({compiler.process(element.clauses, **options)})"


@compiles(UtcDay, "postgresql")
def _day_postgresql(element: UtcDay, compiler: SQLCompiler, **options: Any) -> str:
    time = compiler.process(element.clauses, **options)
    return f"(CAST({time} AT TIME ZONE 'UTC' AS date))"


metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("batch_id", String(128)),
    Column("custom_id", String(256), nullable=False),
    Column("pool", String(63), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("residency", String(16), nullable=False),
    Column("priority", String(8), nullable=False),
    Column("body", Text, nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("prompt_hash", String(64), nullable=False),
    Column("traceparent", String(64)),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("deadline_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Column("request_hash", String(64)),
    Column("cancelled_at", UtcDateTime),
    Column("held_by", String(32)),
    Column("left_at", UtcDateTime),
    Index("ix_prompts_batch", "tenant", "batch_id"),
    Index(
        "ix_prompts_unpublished",
        "submitted_at",
        sqlite_where=text("published_at IS NULL"),
        postgresql_where=text("published_at IS NULL"),
    ),
    Index("ix_prompts_deadline", "deadline_at"),
    Index(
        "ix_prompts_request",
        "tenant",
        "request_hash",
        "submitted_at",
        sqlite_where=text("request_hash IS NOT NULL"),
        postgresql_where=text("request_hash IS NOT NULL"),
    ),
    Index(
        "ix_prompts_cancelled",
        "cancelled_at",
        sqlite_where=text("cancelled_at IS NOT NULL"),
        postgresql_where=text("cancelled_at IS NOT NULL"),
    ),
)

fusions = Table(
    "fusions",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("plan", Text),
    Column("due_at", UtcDateTime),
    Column("timer_at", UtcDateTime),
    Column("is_done", Boolean, nullable=False),
    Column("unpublished_since", UtcDateTime),
    Index(
        "ix_fusions_due",
        "due_at",
        sqlite_where=text("is_done = 0"),
        postgresql_where=text("NOT is_done"),
    ),
    Index(
        "ix_fusions_unpublished",
        "unpublished_since",
        sqlite_where=text("unpublished_since IS NOT NULL"),
        postgresql_where=text("unpublished_since IS NOT NULL"),
    ),
)

rounds = Table(
    "rounds",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("body", Text, nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("call", String(80), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("tier", String(8), nullable=False),
    Column("error_code", String(32)),
    Column("is_late", Boolean, nullable=False),
    Column("after_rounds", Integer, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("body", Text, nullable=False),
    # For v_outcome, which would else read all candidates of each outcome.
    Index(
        "ix_candidates_late",
        "fusion_id",
        sqlite_where=text("is_late"),
        postgresql_where=text("is_late"),
    ),
    # For the events of a period. It grows at its end, so it costs the judge next to nothing.
    Index("ix_candidates_received", "received_at"),
)

# Costs of candidates that came after the outcome. The judge adds a row, and ingest removes it once
# it is counted.
late_costs = Table(
    "late_costs",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("call", String(80), primary_key=True),
    Column("usd", Float, nullable=False),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("is_degraded", Boolean, nullable=False),
    Column("degraded_reasons", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("batch_id", String(128)),
    Column("custom_id", String(256), nullable=False),
    Column("pool", String(63), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("config_hash", String(12)),
    Column("prompt_hash", String(64), nullable=False),
    Column("content", Text),
    Column("tool_calls", Text),
    Column("reason", Text),
    Column("winner", String(63)),
    Column("winner_model", String(63)),
    Column("judge_model", String(63)),
    Column("judge_rung", String(16)),
    Column("agreement", Float),
    Column("answer_kind", String(16)),
    Column("closed_by", String(16)),
    Column("missing_weight", Float, nullable=False, server_default="0"),
    Column("guard", String(16)),
    Column("swap_consistent", Boolean),
    Column("hedges", Integer, nullable=False, server_default="0"),
    Column("is_replay", Boolean, nullable=False, server_default=false()),
    Column("accepted", Boolean),
    Column("n_asked", Integer, nullable=False),
    Column("n_answered", Integer, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("panel_ms", Float),
    Column("judge_ms", Float),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("tokens_cached", Integer),
    Column("tokens_thought", Integer),
    Column("cost_panel_usd", Float),
    Column("cost_judge_usd", Float),
    Column("cost_usd", Float),
    Column("price_version", String(32)),
    Column("error", Text),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("body", Text, nullable=False),
    # When the texts of the whole fusion were deleted; its figures remain.
    Column("texts_deleted_at", UtcDateTime),
    Index("ix_outcomes_batch", "batch_id", "tenant"),
    Index("ix_outcomes_finished", "finished_at"),
    Index("ix_outcomes_tenant", "tenant", "finished_at"),
    Index("ix_outcomes_pool", "pool", "finished_at"),
    Index(
        "ix_outcomes_texts",
        "tenant",
        "finished_at",
        sqlite_where=text("texts_deleted_at IS NULL"),
        postgresql_where=text("texts_deleted_at IS NULL"),
    ),
)
Index("ix_outcomes_day", UtcDay(outcomes.c.finished_at))

answers = Table(
    "answers",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("member", String(63), primary_key=True),
    Column("round", Integer),
    Column("call", String(80)),
    Column("content", Text),
    Column("weight", Float),
    Column("agreed", Boolean),
    Column("vote_group", Integer),
    Column("is_right", Boolean),
    Column("model", String(63), nullable=False),
    Column("tier", String(8), nullable=False),
    Column("provider", String(63)),
    Column("status", String(8), nullable=False),
    Column("error_code", String(32)),
    Column("error_status", Integer),
    Column("provider_code", String(64)),
    Column("provider_param", String(64)),
    Column("shown_position", Integer),
    Column("is_winner", Boolean, nullable=False),
    Column("attempts", Integer),
    Column("latency_ms", Float),
    Column("tokens_in", Integer),
    Column("tokens_out", Integer),
    Column("cost_usd", Float),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("call", String(80), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("judge_model", String(63), nullable=False),
    Column("n_shown", Integer, nullable=False),
    # JSON lists in the order shown: members, ~merged or ~control, and lengths in characters.
    Column("shown", Text, nullable=False, server_default="[]"),
    Column("chars", Text, nullable=False, server_default="[]"),
    Column("is_by_margin", Boolean, nullable=False, server_default=false()),
    Column("swap_of", String(80)),
    Column("winner", String(63)),
    Column("winner_position", Integer),
    Column("longest_position", Integer),
    Column("n_own_family", Integer, nullable=False),
    Column("is_own_family_winner", Boolean),
    Column("control", String(16)),
    Column("is_control_winner", Boolean, nullable=False),
    Column("rung", String(16)),
    Column("void", String(32)),
    Column("is_consistent", Boolean),
    Column("decided_at", UtcDateTime, nullable=False),
    Index(
        "ix_verdicts_control",
        "decided_at",
        sqlite_where=text("control IS NOT NULL"),
        postgresql_where=text("control IS NOT NULL"),
    ),
)

votes = Table(
    "votes",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("voter_hash", String(64), primary_key=True),
    Column("choice", String(63), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)

# Every vote as it was given, the changed ones too.
vote_changes = Table(
    "vote_changes",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("voter_hash", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("choice", String(63), nullable=False),
    Column("key_id", String(16)),
    Column("voted_at", UtcDateTime, nullable=False),
)

# What was erased on request, without any content of it.
erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", String(32), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("custom_id_hash", String(64)),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("completed_at", UtcDateTime),
    Column("counts", Text, nullable=False),
)

# One row: the broker's store that `prompts.published_at` refers to.
published_to = Table("published_to", metadata, Column("store_id", String(32), primary_key=True))

# One row: the oldest code that may run on this schema, as the number of the newest schema that it
# knows. Made and written by `migrate.upgrade`, as `alembic_version` is (docs/decisions/0050).
schema_compatibility = Table(
    "schema_compatibility", metadata, Column("oldest_code", String(32), primary_key=True)
)

processes = Table(
    "processes",
    metadata,
    Column("process_id", String(32), primary_key=True),
    Column("service", String(32), nullable=False),
    Column("store_id", String(32), nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("file_id", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(256), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("is_whole", Boolean, nullable=False),
    Column("batch_id", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Index("ix_files_tenant", "tenant", "created_at"),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

# Large images and large texts of prompts.
images = Table(
    "images",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("used_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Index("ix_images_used", "used_at"),
    Index("ix_images_published", "published_at"),
)

image_uses = Table(
    "image_uses",
    metadata,
    Column("image", String(64), primary_key=True),
    Column("fusion_id", String(27), primary_key=True),
    Index("ix_image_uses_fusion", "fusion_id"),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("status", String(16), nullable=False),
    Column("stop_reason", String(16)),
    Column("waiting_for", String(256)),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("options", Text, nullable=False),
    Column("priority", String(8), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("key_id", String(16)),
    Column("errors", Text),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("degraded", Integer, nullable=False),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
    Column("tokens_cached", BigInteger, nullable=False, server_default="0"),
    Column("tokens_thought", BigInteger, nullable=False, server_default="0"),
    Column("cost_usd", Float, nullable=False),
    Column("n_unpriced", Integer, nullable=False),
    Column("max_cost_usd", Float),
    Column("created_at", UtcDateTime, nullable=False),
    Column("touched_at", UtcDateTime, nullable=False),
    Column("in_progress_at", UtcDateTime),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("finalizing_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("failed_at", UtcDateTime),
    Column("expired_at", UtcDateTime),
    Column("cancelling_at", UtcDateTime),
    Column("cancelled_at", UtcDateTime),
    Index("ix_batches_tenant", "tenant", "created_at"),
    Index("ix_batches_status", "status"),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("custom_id", String(256), nullable=False),
    Column("state", String(12), nullable=False),
    Column("byte_offset", BigInteger, nullable=False),
    Column("byte_length", Integer, nullable=False),
    Column("warnings", Text),
    Column("fusion_id", String(27)),
    Column("settled", Integer),
    Column("is_retryable", Boolean),
    Column("error", Text),
    Index("ux_batch_lines_custom_id", "batch_id", "custom_id", unique=True),
    Index(
        "ix_batch_lines_held",
        "batch_id",
        "line",
        sqlite_where=text("state = 'held'"),
        postgresql_where=text("state = 'held'"),
    ),
    Index(
        "ix_batch_lines_flying",
        "batch_id",
        "fusion_id",
        sqlite_where=text("state = 'flying'"),
        postgresql_where=text("state = 'flying'"),
    ),
    Index("ix_batch_lines_settled", "batch_id", "settled"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False),
    # Names, with spaces between them.
    Column("scopes", String(64), nullable=False, server_default="submit read batch"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    # Written every minute at most.
    Column("last_used_at", UtcDateTime),
    Column("replaces", String(16)),
    # Of the keys that were made in place of each other, the first: they have one budget.
    Column("first_key_id", String(16)),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("prompts_in_flight", Integer),
)

# What may be spent. An account is a tenant's name, `key:` and a key's id, or `pool:` and a name.
budget_limits = Table(
    "budget_limits",
    metadata,
    Column("account", String(80), primary_key=True),
    Column("period", String(5), primary_key=True),
    Column("soft_usd", Float),
    Column("hard_usd", Float),
    Column("changed_at", UtcDateTime, nullable=False),
)

# What accounts have spent and reserved, by period (a day, a month, or `total`).
budgets = Table(
    "budgets",
    metadata,
    # It held tenants alone once.
    Column("tenant", String(80), key="account", primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("reserved_usd", Float, nullable=False),
    Column("spent_usd", Float, nullable=False),
    # When its limits were reported.
    Column("soft_passed_at", UtcDateTime),
    Column("hard_reached_at", UtcDateTime),
)

budget_holds = Table(
    "budget_holds",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("account", String(80), primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("usd", Float, nullable=False),
)

# What code before 0017 reserves, one account of each fusion; moved to `budget_holds`.
reservations = Table(
    "reservations",
    metadata,
    Column("fusion_id", String(27), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("period", String(10), nullable=False),
    Column("usd", Float, nullable=False),
)

# Who did what. Triggers refuse to change a row or to delete one.
audit_log = Table(
    "audit_log",
    metadata,
    Column("event_id", String(32), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("tenant", String(63)),
    # `key:` and a key's id, `operator:` and a user's name, or `service:` and its name.
    Column("actor", String(80), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(128)),
    Column("fusion_id", String(27)),
    Column("detail", Text),
    Index("ix_audit_log_at", "at"),
    Index("ix_audit_log_fusion", "fusion_id"),
)
