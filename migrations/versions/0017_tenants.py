"""Scopes and limits of keys, budgets of keys and pools, and who did what."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None
# Older code reserves the budgets of tenants alone, and this release takes over what it reserved.
oldest_code = "0014"

REFUSAL = "audit_log is append only"
KEY_COLUMNS = (
    "last_used_at",
    "replaces",
    "first_key_id",
    "requests_per_minute",
    "tokens_per_minute",
)


def upgrade() -> None:
    op.add_column(
        "api_keys",
        sa.Column("scopes", sa.String(64), nullable=False, server_default="submit read batch"),
    )
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True)))
    op.add_column("api_keys", sa.Column("replaces", sa.String(16)))
    op.add_column("api_keys", sa.Column("first_key_id", sa.String(16)))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.Integer))
    op.add_column("api_keys", sa.Column("prompts_in_flight", sa.Integer))
    op.add_column("batches", sa.Column("key_id", sa.String(16)))
    op.create_table(
        "budget_limits",
        sa.Column("account", sa.String(80), primary_key=True),
        sa.Column("period", sa.String(5), primary_key=True),
        sa.Column("soft_usd", sa.Float),
        sa.Column("hard_usd", sa.Float),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )
    with op.batch_alter_table("budgets") as table:
        table.alter_column("tenant", existing_type=sa.String(63), type_=sa.String(80))
        table.add_column(sa.Column("soft_passed_at", sa.DateTime(timezone=True)))
        table.add_column(sa.Column("hard_reached_at", sa.DateTime(timezone=True)))
    op.create_table(
        "budget_holds",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("account", sa.String(80), primary_key=True),
        sa.Column("period", sa.String(10), primary_key=True),
        sa.Column("usd", sa.Float, nullable=False),
    )
    op.create_table(
        "audit_log",
        sa.Column("event_id", sa.String(32), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(63)),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(128)),
        sa.Column("fusion_id", sa.String(27)),
        sa.Column("detail", sa.Text),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
    op.create_index("ix_audit_log_fusion", "audit_log", ["fusion_id"])
    refuse_changes()


def refuse_changes() -> None:
    """Have the database refuse to change or to delete a row of `audit_log`."""
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_log_{event.lower()} BEFORE {event} ON audit_log"
                f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'integrity_constraint_violation';"
        " END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_change BEFORE UPDATE OR DELETE ON audit_log"
        " FOR EACH ROW EXECUTE FUNCTION audit_log_refuse()"
    )


def downgrade() -> None:
    op.drop_table("audit_log")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_log_refuse()")
    # A tenant's share of what is reserved goes back to where older code settles it.
    op.execute(
        "INSERT INTO reservations SELECT fusion_id, account, period, usd FROM budget_holds"
        " WHERE account NOT LIKE '%:%' AND NOT EXISTS (SELECT 1 FROM reservations r"
        " WHERE r.fusion_id = budget_holds.fusion_id)"
    )
    op.drop_table("budget_holds")
    op.execute("DELETE FROM budgets WHERE tenant LIKE '%:%'")
    with op.batch_alter_table("budgets") as table:
        table.drop_column("hard_reached_at")
        table.drop_column("soft_passed_at")
        table.alter_column("tenant", existing_type=sa.String(80), type_=sa.String(63))
    op.drop_table("budget_limits")
    op.drop_column("batches", "key_id")
    for name in ("prompts_in_flight", *reversed(KEY_COLUMNS), "scopes"):
        op.drop_column("api_keys", name)
