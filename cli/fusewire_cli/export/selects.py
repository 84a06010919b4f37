"""The statements of an export: the rows of a view, of a day, and what tells whether they changed.

The day of `v_outcome` is found by the index on `finished_at`, and the rows of its answers, verdicts
and pairs by their keys, in the order of the outcomes. So nothing is sorted as a whole.
"""

from fusewire.store.views import VIEWS, View, ViewColumn

BY_NAME = {view.name: view for view in VIEWS}
OF_OUTCOMES = {
    "v_outcome": (),
    "v_answer": ("member",),
    "v_verdict": ("call",),
    "v_pair": ("call", "member_a", "member_b"),
}
"""The views whose rows belong to an outcome's day, each with what orders an outcome's rows."""
BY_DAY = (*OF_OUTCOMES, "v_vote")
DEFAULT = BY_DAY
_ORDERS = {"v_event": ("outcome_id", "at", "event", "round", "call")}


def columns(view: View, *, with_day: bool) -> list[ViewColumn]:
    """The columns of a view's files. A hive folder names the day, so Parquet files leave it out."""
    is_partitioned = view.name in BY_DAY
    return [
        column for column in view.columns if with_day or column.name != "day" or not is_partitioned
    ]


def _expression(column: ViewColumn, dialect: str, prefix: str) -> str:
    name = prefix + column.name
    if dialect == "postgresql" and column.type == "real":
        return f"CAST({name} AS double precision)"
    if dialect == "postgresql" and column.type == "timestamp":
        return f"CAST(EXTRACT(EPOCH FROM {name}) * 1000000 AS bigint)"
    return name


def _order(names: tuple[str, ...], view: View, dialect: str, prefix: str) -> list[str]:
    types = {column.name: column.type for column in view.columns}
    # The order of SQLite, which compares bytes and puts NULL first.
    collate = ' COLLATE "C"' if dialect == "postgresql" else ""
    return [
        f"{prefix}{name}{collate if types[name] == 'text' else ''} NULLS FIRST" for name in names
    ]


def _period(column: str, dialect: str) -> str:
    first, second = ("$1", "$2") if dialect == "postgresql" else ("?", "?")
    return f"{column} >= {first} AND {column} < {second}"


def rows_of_day(view: View, dialect: str, *, with_day: bool) -> str:
    """The SELECT for the rows of a day, from its first moment to that of the next."""
    prefix = "r."
    view_columns = columns(view, with_day=with_day)
    names = ", ".join(_expression(column, dialect, prefix) for column in view_columns)
    if view.name == "v_vote":
        order = _order(("created_at", "outcome_id", "voter_hash"), view, dialect, prefix)
        period = _period("r.created_at", dialect)
        return f"SELECT {names} FROM v_vote r WHERE {period} ORDER BY {', '.join(order)}"
    if view.name == "v_outcome":
        order = _order(("finished_at", "outcome_id"), view, dialect, prefix)
        # SQLite reads an index in order only if the order is the index's own.
        order[0] = "r.finished_at"
        period = _period("r.finished_at", dialect)
        return f"SELECT {names} FROM v_outcome r WHERE {period} ORDER BY {', '.join(order)}"
    order = [
        "d.finished_at",
        *_order(("outcome_id",), BY_NAME["v_outcome"], dialect, "d."),
        *_order(OF_OUTCOMES[view.name], view, dialect, prefix),
    ]
    # CROSS keeps SQLite from reading the rows first, and their outcomes for each.
    join = "CROSS JOIN" if dialect == "sqlite" else "JOIN"
    on = "WHERE" if dialect == "sqlite" else "ON"
    return (
        f"SELECT {names} FROM v_outcome d {join} {view.name} r"
        f" {on} r.outcome_id = d.outcome_id {'AND' if on == 'WHERE' else 'WHERE'}"
        f" {_period('d.finished_at', dialect)} ORDER BY {', '.join(order)}"
    )


def all_rows(view: View, dialect: str) -> str:
    """The SELECT for all rows of a view, in an order that is the same on both databases."""
    names = ", ".join(_expression(column, dialect, "r.") for column in view.columns)
    keys = tuple(
        column.name for column in view.columns if column.type in ("date", "text", "integer")
    )
    order = _order(_ORDERS.get(view.name, keys), view, dialect, "r.")
    return f"SELECT {names} FROM {view.name} r ORDER BY {', '.join(order)}"


def stamps(name: str, dialect: str, *, of_day: bool) -> str:
    """The SELECT for day, count, latest time and checksum, of all days or of one."""
    start, changed_at = ("created_at", "changed_at") if name == "v_vote" else ("finished_at",) * 2
    source = "v_vote" if name == "v_vote" else "v_outcome"
    where = f" WHERE {_period(start, dialect)}" if of_day else ""
    if dialect == "postgresql":
        day = f"CAST({start} AT TIME ZONE 'UTC' AS date)"
        micros = f"CAST(EXTRACT(MICROSECONDS FROM {changed_at}) AS bigint) % 1000000"
        latest = f"to_char(MAX({changed_at}) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
        checksum = f"CAST(SUM({micros}) AS bigint)"
    else:
        # Not date(), by whose index SQLite would look each outcome up.
        day = f"substr({start}, 1, 10)"
        latest = f"MAX({changed_at})"
        checksum = f"SUM(CAST(substr({changed_at}, 21) AS INTEGER))"
    return (
        f"SELECT {day} AS day, COUNT(*), {latest}, {checksum} FROM {source}{where}"
        " GROUP BY 1 ORDER BY 1"
    )
