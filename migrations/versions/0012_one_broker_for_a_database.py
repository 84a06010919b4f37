"""Which broker's store prompts were published to, and which processes work with which store."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("published_to", sa.Column("store_id", sa.String(32), primary_key=True))
    op.create_table(
        "processes",
        sa.Column("process_id", sa.String(32), primary_key=True),
        sa.Column("service", sa.String(32), nullable=False),
        sa.Column("store_id", sa.String(32), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("processes")
    op.drop_table("published_to")
