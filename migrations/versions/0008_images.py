"""Large images of prompts, by a name that is made of tenant and content; prompts refer to them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_images_used", "images", ["used_at"])
    op.create_index("ix_images_published", "images", ["published_at"])
    op.create_table(
        "image_uses",
        sa.Column("image", sa.String(64), primary_key=True),
        sa.Column("fusion_id", sa.String(27), primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("image_uses")
    op.drop_table("images")
