"""How an outcome came to be: verdicts, votes, guard, early ends; what is learned from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("candidates") as table:
        table.alter_column(
            "call", type_=sa.String(80), existing_type=sa.String(63), existing_nullable=False
        )
    for column in (
        sa.Column("tool_calls", sa.Text),
        sa.Column("answer_kind", sa.String(16)),
        sa.Column("closed_by", sa.String(16)),
        sa.Column("missing_weight", sa.Float, nullable=False, server_default="0"),
        sa.Column("guard", sa.String(16)),
        sa.Column("swap_consistent", sa.Boolean),
        sa.Column("hedges", sa.Integer, nullable=False, server_default="0"),
        sa.Column("is_replay", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("accepted", sa.Boolean),
    ):
        op.add_column("outcomes", column)
    op.create_index("ix_outcomes_pool", "outcomes", ["pool", "finished_at"])
    for column in (
        sa.Column("call", sa.String(80)),
        sa.Column("content", sa.Text),
        sa.Column("weight", sa.Float),
        sa.Column("agreed", sa.Boolean),
        sa.Column("vote_group", sa.Integer),
        sa.Column("is_right", sa.Boolean),
    ):
        op.add_column("answers", column)
    op.execute("UPDATE answers SET call = member WHERE round IS NOT NULL")
    op.create_table(
        "verdicts",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("call", sa.String(80), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("judge_model", sa.String(63), nullable=False),
        sa.Column("n_shown", sa.Integer, nullable=False),
        sa.Column("winner", sa.String(63)),
        sa.Column("winner_position", sa.Integer),
        sa.Column("longest_position", sa.Integer),
        sa.Column("n_own_family", sa.Integer, nullable=False),
        sa.Column("is_own_family_winner", sa.Boolean),
        sa.Column("control", sa.String(16)),
        sa.Column("is_control_winner", sa.Boolean, nullable=False),
        sa.Column("rung", sa.String(16)),
        sa.Column("void", sa.String(32)),
        sa.Column("is_consistent", sa.Boolean),
        sa.Column("decided_at", TIME, nullable=False),
    )
    op.create_index(
        "ix_verdicts_control",
        "verdicts",
        ["judge_model", "decided_at"],
        sqlite_where=sa.text("control IS NOT NULL"),
        postgresql_where=sa.text("control IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("verdicts")
    with op.batch_alter_table("candidates") as table:
        table.alter_column(
            "call", type_=sa.String(63), existing_type=sa.String(80), existing_nullable=False
        )
    for column in ("call", "content", "weight", "agreed", "vote_group", "is_right"):
        op.drop_column("answers", column)
    op.drop_index("ix_outcomes_pool", "outcomes")
    for column in (
        "tool_calls",
        "answer_kind",
        "closed_by",
        "missing_weight",
        "guard",
        "swap_consistent",
        "hedges",
        "is_replay",
        "accepted",
    ):
        op.drop_column("outcomes", column)
