"""A request that is sent again finds its fusion; a fusion can be cancelled."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )


def upgrade() -> None:
    op.add_column("prompts", sa.Column("request_hash", sa.String(64)))
    op.add_column("prompts", sa.Column("cancelled_at", TIME))
    _partial(
        "ix_prompts_request",
        "prompts",
        ["tenant", "request_hash", "submitted_at"],
        "request_hash IS NOT NULL",
    )
    _partial("ix_prompts_cancelled", "prompts", ["cancelled_at"], "cancelled_at IS NOT NULL")


def downgrade() -> None:
    for index in ("ix_prompts_cancelled", "ix_prompts_request"):
        op.drop_index(index, "prompts")
    op.drop_column("prompts", "cancelled_at")
    op.drop_column("prompts", "request_hash")
