"""Reads what is compared from the views."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from fusewire.analysis.compare import HumanVote, Names, Pair, map_votes, pair_models, pair_pools
from fusewire.analysis.compare.pairing import as_time
from fusewire.store.analyst.result import QueryRefused

MOST_OUTCOMES = 100_000
"""The newest of more: they would hardly narrow an interval, but need gigabytes."""

Kind = Literal["models", "pools"]
Fetch = Callable[[str, Mapping[str, object]], Awaitable[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Selection:
    """Which outcomes are compared."""

    kind: Kind | None = None
    """None: what the names are."""
    pool: str | None = None
    judge: str | None = None
    since: datetime | None = None
    pools: tuple[str, ...] = ()
    """Further limits `pool` to these; none limit it."""

    def conditions(self) -> str:
        """SQL on the outcome `o`, to follow a WHERE."""
        pool = " AND o.pool = :pool" if self.pool else ""
        if self.pools:
            pool += (
                f" AND o.pool IN ({', '.join(':' + name for name in _pool_parameters(self.pools))})"
            )
        return pool + (" AND o.finished_at >= :since" if self.since else "")

    def parameters(self) -> dict[str, Any]:
        """The values of `conditions`."""
        values = {"pool": self.pool, "since": self.since, **_pool_parameters(self.pools)}
        return {name: value for name, value in values.items() if value}


def _pool_parameters(pools: Sequence[str]) -> dict[str, str]:
    """The names of parameters for pools, with their values."""
    return {f"pool_{number}": pool for number, pool in enumerate(pools)}


@dataclass(frozen=True)
class Reading:
    """What two models or pools did for the same prompts, and people's votes on it."""

    pairs: list[Pair]
    votes: list[HumanVote]
    is_cut: bool
    """Whether there are more outcomes than were read; those are the newest."""


async def stored_names(fetch: Fetch) -> dict[Kind, set[str]]:
    """The models and the pools that outcomes have, but for those that only replays have."""
    rows = await fetch(
        """SELECT 'models' AS kind, model AS name FROM v_model GROUP BY model
        UNION ALL SELECT 'pools', pool FROM v_pool_day GROUP BY pool""",
        {},
    )
    return {
        "models": {row["name"] for row in rows if row["kind"] == "models"},
        "pools": {row["name"] for row in rows if row["kind"] == "pools"},
    }


async def find_names(fetch: Fetch, a: str, b: str, kind: Kind | None = None) -> Names:
    """Say what two names are.

    Args:
        fetch: runs a statement, as `Analyst.fetch` does.
        a: a model or a pool.
        b: another.
        kind: what they should be; None if either will do.

    Raises:
        QueryRefused: they are not two models or two pools that outcomes have, or could be both.
    """
    if a == b:
        raise QueryRefused(f"{a} would be compared with itself", "name two models or two pools")
    choices = await stored_names(fetch)
    choices["models"] |= await _replay_names(fetch, "model", "v_answer", {a, b} - choices["models"])
    choices["pools"] |= await _replay_names(fetch, "pool", "v_outcome", {a, b} - choices["pools"])
    kinds: list[Kind] = [kind for kind, names in choices.items() if {a, b} <= names]
    if kind is None and len(kinds) > 1:
        raise QueryRefused(f"{a} and {b} are both models and pools", "add --models or --pools")
    if kind is None and kinds:
        return Names(kinds[0], a, b)
    if kind is None or kind not in kinds:
        raise _unknown(a, b, choices, kind)
    return Names(kind, a, b)


async def _replay_names(fetch: Fetch, column: str, view: str, names: set[str]) -> set[str]:
    """Which names only replays have: those are in no sums."""
    names_with_replays = set()
    for name in names:
        rows = await fetch(
            f"SELECT {column} AS name FROM {view} WHERE {column} = :name LIMIT 1",  # noqa: S608 - names of ours
            {"name": name},
        )
        names_with_replays |= {row["name"] for row in rows}
    return names_with_replays


def _unknown(a: str, b: str, choices: dict[Kind, set[str]], kind: Kind | None) -> QueryRefused:
    kinds: list[Kind] = [kind] if kind else ["models", "pools"]
    lists = "; ".join(f"{each}: {', '.join(sorted(choices[each])) or 'none'}" for each in kinds)
    names = set().union(*(choices[each] for each in kinds))
    if missing := [name for name in (a, b) if name not in names]:
        what = f"no outcome has {' or '.join(missing)}"
        return QueryRefused(what, f"choose from the stored ones ({lists})")
    return QueryRefused(f"{a} and {b} are a model and a pool", f"name two of a kind ({lists})")


async def read(
    fetch: Fetch, names: Names, selection: Selection, most: int | None = None
) -> Reading:
    """Read the pairs of two models or pools, and people's votes on them.

    Args:
        fetch: runs a statement, as `Analyst.fetch` does.
        names: the two.
        selection: which outcomes count.
        most: how many outcomes (of pools: of each) are read at most, the newest; of two models
            those of pools that have both, as sums tell. What that takes does not grow with what is
            stored. None reads MOST_OUTCOMES.

    Raises:
        QueryRefused: the selection does not fit pools.
        QueryError: as `Analyst.fetch` raises it.
    """
    is_cut = False
    if most is not None:
        newest_selection = await _narrow(fetch, names, selection, most)
        if newest_selection is None:
            return Reading([], [], is_cut=False)
        selection, is_cut = newest_selection
    rows = await _read_rows(fetch, names, selection, 2 * MOST_OUTCOMES)
    if len(rows) == 2 * MOST_OUTCOMES:
        # What was said of older outcomes would be thrown away.
        selection = replace(selection, since=as_time(rows[-1]["finished_at"]))
        is_cut = True
    if names.kind == "models":
        pairs = pair_models(names, rows, await _read_verdicts(fetch, names, selection))
    else:
        pairs = pair_pools(names, rows)
    return Reading(pairs, await _read_votes(fetch, names, selection), is_cut)


_OUTCOME = """o.outcome_id, o.prompt_hash, o.finished_at, o.answer_kind, o.agreement, o.reason,
  o.judge_model, o.verdict_parse, o.is_replay, o.accepted"""


async def _narrow(
    fetch: Fetch, names: Names, selection: Selection, most: int
) -> tuple[Selection, bool] | None:
    """The selection of the newest outcomes, and whether there are older ones that it leaves out.

    None if no pool has both models.
    """
    is_models = names.kind == "models"
    pools = await _pools_of_both(fetch, names, selection) if is_models else (names.a, names.b)
    limit = most if is_models else 2 * most
    if not pools:
        return None
    since = " AND finished_at >= :since" if selection.since else ""
    # Each pool by its index: all of them at once would be sorted first.
    newest = " UNION ALL ".join(
        f"""SELECT * FROM (SELECT finished_at FROM v_outcome WHERE pool = :{name} {since}
          ORDER BY finished_at DESC LIMIT {limit + 1}) {name}"""  # noqa: S608 - as above
        for name in _pool_parameters(pools)
    )
    selection = replace(selection, pools=pools)
    rows = await fetch(
        f"""SELECT finished_at FROM ({newest}) newest
        ORDER BY finished_at DESC LIMIT 2 OFFSET {limit - 1}""",  # noqa: S608 - as above
        _pool_parameters(pools) | ({"since": selection.since} if since else {}),
    )
    if len(rows) < 2:
        return selection, False
    return replace(selection, since=as_time(rows[0]["finished_at"])), True


async def _pools_of_both(fetch: Fetch, names: Names, selection: Selection) -> tuple[str, ...]:
    """The selected pools that have outcomes of both models."""
    rows = await fetch(
        """SELECT pool FROM v_model WHERE model IN (:a, :b)
        GROUP BY pool HAVING COUNT(DISTINCT model) = 2 ORDER BY pool""",
        {"a": names.a, "b": names.b},
    )
    return tuple(row["pool"] for row in rows if selection.pool in (None, row["pool"]))


async def _read_rows(
    fetch: Fetch, names: Names, selection: Selection, limit: int
) -> list[dict[str, Any]]:
    """The newest answers of two models, or outcomes of two pools, the newest first."""
    read_newest = _read_answers if names.kind == "models" else _read_outcomes
    return await read_newest(fetch, names, selection, limit)


async def _read_answers(
    fetch: Fetch, names: Names, selection: Selection, limit: int
) -> list[dict[str, Any]]:
    return await fetch(
        f"""SELECT {_OUTCOME}, a.model, a.member, a.status, a.attempts, a.cost_usd, a.latency_ms,
          a.is_right, o.n_asked AS n_members,
          CASE WHEN o.accepted IS NOT NULL THEN (
            SELECT COUNT(*) FROM v_answer r WHERE r.outcome_id = a.outcome_id AND r.is_right
          ) ELSE 0 END AS n_right
        FROM v_answer a JOIN v_outcome o ON o.outcome_id = a.outcome_id
        WHERE a.model IN (:a, :b) AND a.status <> 'unasked' AND o.status <> 'cancelled'
          {selection.conditions()}
        ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {limit}""",  # noqa: S608 - as above
        {"a": names.a, "b": names.b} | selection.parameters(),
    )


async def _read_outcomes(
    fetch: Fetch, names: Names, selection: Selection, limit: int
) -> list[dict[str, Any]]:
    if selection.pool or selection.judge:
        raise QueryRefused(
            "--pool and --judge choose among outcomes of models", "leave them out for two pools"
        )
    return await fetch(
        f"""SELECT {_OUTCOME}, o.pool, o.status, o.cost_usd, o.latency_ms FROM v_outcome o
        WHERE o.pool IN (:a, :b) {selection.conditions()}
        ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {limit}""",  # noqa: S608 - as above
        {"a": names.a, "b": names.b} | selection.parameters(),
    )


async def _read_verdicts(fetch: Fetch, names: Names, selection: Selection) -> list[dict[str, Any]]:
    judge = " AND p.judge_model = :judge" if selection.judge else ""
    values = {"a": names.a, "b": names.b} | selection.parameters()
    return await fetch(
        f"""SELECT p.outcome_id, p.judge_model, p.model_a, p.model_b, p.verdict, p.is_consistent,
          p.is_by_margin
        FROM v_pair p JOIN v_outcome o ON o.outcome_id = p.outcome_id
        WHERE (p.model_a = :a AND p.model_b = :b OR p.model_a = :b AND p.model_b = :a)
          {judge} {selection.conditions()}""",  # noqa: S608 - as above
        values | ({"judge": selection.judge} if judge else {}),
    )


async def _read_votes(fetch: Fetch, names: Names, selection: Selection) -> list[HumanVote]:
    # A join with the answers would read all of them first on SQLite.
    rows = await fetch(
        f"""SELECT t.outcome_id, t.choice, t.agrees, t.pool, o.winner_model,
          (SELECT m.model FROM v_answer m
            WHERE m.outcome_id = t.outcome_id AND m.member = t.choice) AS choice_model
        FROM v_vote t JOIN v_outcome o ON o.outcome_id = t.outcome_id
        WHERE 1 = 1 {selection.conditions()}""",  # noqa: S608 - as above
        selection.parameters(),
    )
    return map_votes(names, rows)
