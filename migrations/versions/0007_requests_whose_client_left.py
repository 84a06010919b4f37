"""Who waits for a request's outcome, and since when nobody does: what a repetition is told by."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prompts", sa.Column("held_by", sa.String(32)))
    op.add_column("prompts", sa.Column("left_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("prompts", "left_at")
    op.drop_column("prompts", "held_by")
