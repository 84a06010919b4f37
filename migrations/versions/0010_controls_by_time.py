"""Verdicts on controls are looked for by their time, whoever the judge was."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NAME = "ix_verdicts_control"
WHERE = {f"{dialect}_where": sa.text("control IS NOT NULL") for dialect in ("sqlite", "postgresql")}


def upgrade() -> None:
    op.drop_index(NAME, "verdicts")
    op.create_index(NAME, "verdicts", ["decided_at"], **WHERE)


def downgrade() -> None:
    op.drop_index(NAME, "verdicts")
    op.create_index(NAME, "verdicts", ["judge_model", "decided_at"], **WHERE)
