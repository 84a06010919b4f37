"""Files, batches and their lines, API keys, budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(256), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("is_whole", sa.Boolean, nullable=False),
        sa.Column("batch_id", sa.String(64)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
    )
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stop_reason", sa.String(16)),
        sa.Column("waiting_for", sa.String(256)),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("priority", sa.String(8), nullable=False),
        sa.Column("completion_window", sa.String(16), nullable=False),
        sa.Column("errors", sa.Text),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("degraded", sa.Integer, nullable=False),
        sa.Column("tokens_in", sa.BigInteger, nullable=False),
        sa.Column("tokens_out", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Float, nullable=False),
        sa.Column("n_unpriced", sa.Integer, nullable=False),
        sa.Column("max_cost_usd", sa.Float),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("touched_at", TIME, nullable=False),
        sa.Column("in_progress_at", TIME),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("finalizing_at", TIME),
        sa.Column("completed_at", TIME),
        sa.Column("failed_at", TIME),
        sa.Column("expired_at", TIME),
        sa.Column("cancelling_at", TIME),
        sa.Column("cancelled_at", TIME),
    )
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True),
        sa.Column("custom_id", sa.String(256), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("byte_offset", sa.BigInteger, nullable=False),
        sa.Column("byte_length", sa.Integer, nullable=False),
        sa.Column("warnings", sa.Text),
        sa.Column("fusion_id", sa.String(27)),
        sa.Column("settled", sa.Integer),
        sa.Column("is_retryable", sa.Boolean),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
    )
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("period", sa.String(10), primary_key=True),
        sa.Column("reserved_usd", sa.Float, nullable=False),
        sa.Column("spent_usd", sa.Float, nullable=False),
    )
    op.create_table(
        "reservations",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("usd", sa.Float, nullable=False),
    )
    op.create_index("ix_files_tenant", "files", ["tenant", "created_at"])
    op.create_index("ix_batches_tenant", "batches", ["tenant", "created_at"])
    op.create_index("ix_batches_status", "batches", ["status"])
    op.create_index(
        "ux_batch_lines_custom_id", "batch_lines", ["batch_id", "custom_id"], unique=True
    )
    _partial("ix_batch_lines_held", "batch_lines", ["batch_id", "line"], "state = 'held'")
    _partial("ix_batch_lines_flying", "batch_lines", ["batch_id", "fusion_id"], "state = 'flying'")
    op.create_index("ix_batch_lines_settled", "batch_lines", ["batch_id", "settled"])


def downgrade() -> None:
    for table in (
        "reservations",
        "budgets",
        "api_keys",
        "batch_lines",
        "batches",
        "file_chunks",
        "files",
    ):
        op.drop_table(table)
