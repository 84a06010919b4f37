"""Rounds and outcomes that are stored and not yet on the broker."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

NAME = "ix_fusions_unpublished"
WHERE = {
    f"{dialect}_where": sa.text("unpublished_since IS NOT NULL")
    for dialect in ("sqlite", "postgresql")
}


def upgrade() -> None:
    op.add_column("fusions", sa.Column("unpublished_since", sa.DateTime(timezone=True)))
    op.create_index(NAME, "fusions", ["unpublished_since"], **WHERE)


def downgrade() -> None:
    op.drop_index(NAME, "fusions")
    op.drop_column("fusions", "unpublished_since")
