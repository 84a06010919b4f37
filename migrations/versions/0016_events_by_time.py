"""Candidates by the time they came, for questions on the events of a period."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None
oldest_code = "0014"


def upgrade() -> None:
    op.create_index("ix_candidates_received", "candidates", ["received_at"])


def downgrade() -> None:
    op.drop_index("ix_candidates_received", "candidates")
