"""What analysts ask for: sums by day, who was shown to a judge, votes, and what was erased."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
# What it stores has no sums by day: `fusewire db sums` makes them.
oldest_code = "0014"

PAGE = 500
DAY = {
    "sqlite": "date(finished_at)",
    "postgresql": "(CAST(finished_at AT TIME ZONE 'UTC' AS date))",
}
SUMS = {
    "pool_days": (
        {"mode": sa.String(16), "config_hash": sa.String(12)},
        (
            "outcomes failed cancelled fallbacks degraded disagreements repaired labelled accepted"
            " oracle_right n_unpriced"
        ),
        "cost_usd",
    ),
    "model_days": (
        {"model": sa.String(63), "tier": sa.String(8)},
        (
            "asked answered failed wins sole_wins labelled rights sole_rights losses n_unpriced"
            " tokens_in tokens_out"
        ),
        "cost_usd",
    ),
    "pair_days": (
        {"judge_model": sa.String(63), "model": sa.String(63), "opponent": sa.String(63)},
        "n wins ties",
        "",
    ),
    "judge_days": (
        {"judge_model": sa.String(63)},
        (
            "presentations first_wins second_wins swapped flipped longer_wins longer_shown"
            " own_family_wins own_family_shown repaired reasked"
        ),
        "fair_firsts",
    ),
    "latency_days": (
        {"stage": sa.String(8), "model": sa.String(63), "bucket_ms": sa.Integer},
        "n",
        "",
    ),
}


def upgrade() -> None:
    for name, (keys, counts, amounts) in SUMS.items():
        create_sums(name, keys, counts.split(), amounts.split())
    op.create_table(
        "votes",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("voter_hash", sa.String(64), primary_key=True),
        sa.Column("choice", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "vote_changes",
        sa.Column("fusion_id", sa.String(27), primary_key=True),
        sa.Column("voter_hash", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("choice", sa.String(63), nullable=False),
        sa.Column("key_id", sa.String(16)),
        sa.Column("voted_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "erasures",
        sa.Column("erasure_id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("custom_id_hash", sa.String(64)),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("counts", sa.Text, nullable=False),
    )
    op.add_column("verdicts", sa.Column("shown", sa.Text, nullable=False, server_default="[]"))
    op.add_column("verdicts", sa.Column("chars", sa.Text, nullable=False, server_default="[]"))
    op.add_column(
        "verdicts",
        sa.Column("is_by_margin", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column("verdicts", sa.Column("swap_of", sa.String(80)))
    op.add_column("outcomes", sa.Column("texts_deleted_at", sa.DateTime(timezone=True)))
    op.create_index(
        "ix_outcomes_texts",
        "outcomes",
        ["tenant", "finished_at"],
        sqlite_where=sa.text("texts_deleted_at IS NULL"),
        postgresql_where=sa.text("texts_deleted_at IS NULL"),
    )
    op.drop_index("ix_outcomes_batch", "outcomes")
    op.create_index("ix_outcomes_batch", "outcomes", ["batch_id", "tenant"])
    op.create_index(
        "ix_candidates_late",
        "candidates",
        ["fusion_id"],
        sqlite_where=sa.text("is_late"),
        postgresql_where=sa.text("is_late"),
    )
    # For questions by the views' column `day`.
    day = sa.text(DAY[op.get_bind().dialect.name])
    op.create_index("ix_outcomes_day", "outcomes", [day])
    fill_verdicts(op.get_bind())


def create_sums(name: str, keys: dict[str, Any], counts: list[str], amounts: list[str]) -> None:
    key_columns = {"tenant": sa.String(63), "day": sa.Date, "pool": sa.String(63), **keys}
    key_columns["slot"] = sa.Integer
    op.create_table(
        name,
        *(
            sa.Column(key, kind, primary_key=True, autoincrement=False)
            for key, kind in key_columns.items()
        ),
        *(sa.Column(count, sa.BigInteger, nullable=False) for count in counts),
        *(sa.Column(amount, sa.Float, nullable=False) for amount in amounts),
    )


def fill_verdicts(connection: sa.Connection) -> None:
    """The outcomes' JSON has what the new columns hold."""
    read = sa.text(
        "SELECT fusion_id, body FROM outcomes WHERE fusion_id > :after"
        " AND fusion_id IN (SELECT fusion_id FROM verdicts) ORDER BY fusion_id LIMIT :most"
    )
    write = sa.text(
        "UPDATE verdicts SET shown = :shown, chars = :chars, is_by_margin = :is_by_margin,"
        ' swap_of = :swap_of WHERE fusion_id = :fusion_id AND "call" = :call'
    )
    after = ""
    while page := connection.execute(read, {"after": after, "most": PAGE}).all():
        rows = []
        for fusion_id, body in page:
            rows += verdict_rows(fusion_id, json.loads(body).get("verdicts") or [])
        if rows:
            connection.execute(write, rows)
        after = page[-1].fusion_id


def verdict_rows(fusion_id: str, verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "fusion_id": fusion_id,
            "call": verdict["call"],
            "shown": json.dumps(verdict["shown"]),
            "chars": json.dumps(verdict.get("chars") or []),
            "is_by_margin": bool(verdict.get("logprobs")),
            "swap_of": swap_of(verdict, verdicts),
        }
        for verdict in verdicts
    ]


def swap_of(verdict: dict[str, Any], verdicts: list[dict[str, Any]]) -> str | None:
    """The call in which the same judge saw the opposite order."""
    if verdict.get("is_consistent") is None:
        return None
    for other in verdicts:
        is_same_turn = other["call"].rpartition("-")[0] == verdict["call"].rpartition("-")[0]
        if is_same_turn and other["call"] != verdict["call"]:
            return str(other["call"])
    return None


def downgrade() -> None:
    op.drop_index("ix_candidates_late", "candidates")
    op.drop_index("ix_outcomes_day", "outcomes")
    op.drop_index("ix_outcomes_texts", "outcomes")
    op.drop_column("outcomes", "texts_deleted_at")
    op.drop_index("ix_outcomes_batch", "outcomes")
    op.create_index("ix_outcomes_batch", "outcomes", ["tenant", "batch_id"])
    for column in ("swap_of", "is_by_margin", "chars", "shown"):
        op.drop_column("verdicts", column)
    for table in ("erasures", "vote_changes", "votes", *reversed(SUMS)):
        op.drop_table(table)
