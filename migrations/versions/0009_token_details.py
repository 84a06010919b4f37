"""Tokens of an outcome that came from a cache or were reasoning, and their sums for batches."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = ("tokens_cached", "tokens_thought")


def upgrade() -> None:
    with op.batch_alter_table("outcomes") as table:
        for name in COLUMNS:
            table.add_column(sa.Column(name, sa.Integer))
    with op.batch_alter_table("batches") as table:
        for name in COLUMNS:
            table.add_column(sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    for table_name in ("outcomes", "batches"):
        with op.batch_alter_table(table_name) as table:
            for name in COLUMNS:
                table.drop_column(name)
