"""The first schema: prompts, fusions, rounds, candidates, outcomes, answers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("batch_id", sa.String(128)),
        sa.Column("custom_id", sa.String(256), nullable=False),
        sa.Column("pool", sa.String(63), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("residency", sa.String(16), nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("prompt_hash", sa.String(64), nullable=False),
        sa.Column("traceparent", sa.String(64)),
        sa.Column("submitted_at", TIME, nullable=False),
        sa.Column("deadline_at", TIME, nullable=False),
        sa.Column("published_at", TIME),
    )
    op.create_index("ix_prompts_batch", "prompts", ["tenant", "batch_id"])
    op.create_index(
        "ix_prompts_unpublished",
        "prompts",
        ["submitted_at"],
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_index("ix_prompts_deadline", "prompts", ["deadline_at"])
    op.create_table(
        "fusions",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("plan", sa.Text),
        sa.Column("due_at", TIME),
        sa.Column("timer_at", TIME),
        sa.Column("is_done", sa.Boolean, nullable=False),
    )
    op.create_index(
        "ix_fusions_due",
        "fusions",
        ["due_at"],
        sqlite_where=sa.text("is_done = 0"),
        postgresql_where=sa.text("NOT is_done"),
    )
    op.create_table(
        "rounds",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
    )
    op.create_table(
        "candidates",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("call", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("is_late", sa.Boolean, nullable=False),
        sa.Column("after_rounds", sa.Integer, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "outcomes",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("is_degraded", sa.Boolean, nullable=False),
        sa.Column("degraded_reasons", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("batch_id", sa.String(128)),
        sa.Column("custom_id", sa.String(256), nullable=False),
        sa.Column("pool", sa.String(63), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("config_hash", sa.String(12)),
        sa.Column("prompt_hash", sa.String(64), nullable=False),
        sa.Column("content", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("winner", sa.String(63)),
        sa.Column("winner_model", sa.String(63)),
        sa.Column("judge_model", sa.String(63)),
        sa.Column("judge_rung", sa.String(16)),
        sa.Column("agreement", sa.Float),
        sa.Column("n_asked", sa.Integer, nullable=False),
        sa.Column("n_answered", sa.Integer, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("panel_ms", sa.Float),
        sa.Column("judge_ms", sa.Float),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        sa.Column("cost_panel_usd", sa.Float),
        sa.Column("cost_judge_usd", sa.Float),
        sa.Column("cost_usd", sa.Float),
        sa.Column("price_version", sa.String(32)),
        sa.Column("error", sa.Text),
        sa.Column("submitted_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_outcomes_batch", "outcomes", ["tenant", "batch_id"])
    op.create_index("ix_outcomes_finished", "outcomes", ["finished_at"])
    op.create_table(
        "answers",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("member", sa.String(63), primary_key=True),
        sa.Column("round", sa.Integer),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("provider", sa.String(63)),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("shown_position", sa.Integer),
        sa.Column("is_winner", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer),
        sa.Column("latency_ms", sa.Float),
        sa.Column("tokens_in", sa.Integer),
        sa.Column("tokens_out", sa.Integer),
        sa.Column("cost_usd", sa.Float),
    )


def downgrade() -> None:
    op.drop_table("answers")
    op.drop_table("outcomes")
    op.drop_table("candidates")
    op.drop_table("rounds")
    op.drop_table("fusions")
    op.drop_table("prompts")
