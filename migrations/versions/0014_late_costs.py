"""What came after an outcome and cost something, until a budget has counted it."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "late_costs",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("call", sa.String(80), primary_key=True),
        sa.Column("usd", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("late_costs")
