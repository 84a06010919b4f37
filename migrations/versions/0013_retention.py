"""Indexes for what is deleted by age."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_outcomes_tenant", "outcomes", ["tenant", "finished_at"])
    op.create_index("ix_image_uses_fusion", "image_uses", ["fusion_id"])


def downgrade() -> None:
    op.drop_index("ix_image_uses_fusion", "image_uses")
    op.drop_index("ix_outcomes_tenant", "outcomes")
