"""Tokens that nobody counted are null, no longer 0."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("tokens_in", "tokens_out")


def upgrade() -> None:
    with op.batch_alter_table("outcomes") as table:
        for name in COLUMNS:
            table.alter_column(name, existing_type=sa.Integer(), nullable=True)


def downgrade() -> None:
    for name in COLUMNS:
        op.execute(sa.text(f"UPDATE outcomes SET {name} = 0 WHERE {name} IS NULL"))  # noqa: S608 - names of ours
    with op.batch_alter_table("outcomes") as table:
        for name in COLUMNS:
            table.alter_column(name, existing_type=sa.Integer(), nullable=False)
