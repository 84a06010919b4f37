"""The summary tables: sums by day of stored outcomes, kept by `fusewire.store.summaries`.

Each primary key ends with `slot`, so that judges that write at the same time do not wait for each
other's rows; the views add the slots up (docs/decisions/0045).
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Date, Float, Integer, String, Table

from fusewire.store.tables import metadata


def _key(name: str, kind: Any) -> Column[Any]:
    # SQLite would make the first whole number of a primary key count by itself.
    return Column(name, kind, primary_key=True, autoincrement=False)


def _table(name: str, keys: dict[str, Any], counts: str, amounts: str = "") -> Table:
    return Table(
        name,
        metadata,
        _key("tenant", String(63)),
        _key("day", Date),
        _key("pool", String(63)),
        *(_key(key, kind) for key, kind in keys.items()),
        _key("slot", Integer),
        *(Column(count, BigInteger, nullable=False) for count in counts.split()),
        *(Column(amount, Float, nullable=False) for amount in amounts.split()),
    )


pool_days = _table(
    "pool_days",
    {"mode": String(16), "config_hash": String(12)},
    "outcomes failed cancelled fallbacks degraded disagreements repaired labelled accepted"
    " oracle_right n_unpriced",
    "cost_usd",
)
model_days = _table(
    "model_days",
    {"model": String(63), "tier": String(8)},
    "asked answered failed wins sole_wins labelled rights sole_rights losses n_unpriced"
    " tokens_in tokens_out",
    "cost_usd",
)
pair_days = _table(
    "pair_days",
    {"judge_model": String(63), "model": String(63), "opponent": String(63)},
    "n wins ties",
)
judge_days = _table(
    "judge_days",
    {"judge_model": String(63)},
    "presentations first_wins second_wins swapped flipped longer_wins longer_shown"
    " own_family_wins own_family_shown repaired reasked",
    "fair_firsts",
)
latency_days = _table(
    "latency_days",
    {"stage": String(8), "model": String(63), "bucket_ms": Integer},
    "n",
)
