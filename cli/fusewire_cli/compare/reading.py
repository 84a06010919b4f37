"""Reads what is compared from the views."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NoReturn

from fusewire.analysis.compare import HumanVote, Names, Pair, map_votes, pair_models, pair_pools
from fusewire.store.analyst import Analyst
from fusewire_cli.screen import fail, note

MOST_OUTCOMES = 100_000
"""The newest of more: they would hardly narrow an interval, but need gigabytes."""

Kind = Literal["models", "pools"]


@dataclass(frozen=True)
class Selection:
    """Which outcomes are compared."""

    kind: Kind | None = None
    """None: what the names are."""
    pool: str | None = None
    judge: str | None = None
    since: datetime | None = None

    def conditions(self) -> str:
        """SQL on the outcome `o`, to follow a WHERE."""
        pool = " AND o.pool = :pool" if self.pool else ""
        return pool + (" AND o.finished_at >= :since" if self.since else "")

    def parameters(self) -> dict[str, Any]:
        """The values of `conditions`."""
        values = {"pool": self.pool, "since": self.since}
        return {name: value for name, value in values.items() if value}


async def read(
    analyst: Analyst, a: str, b: str, selection: Selection
) -> tuple[Names, list[Pair], list[HumanVote]]:
    """Read the pairs of two models or pools, and people's votes on them."""
    names = Names(await _find_kind(analyst, a, b, selection), a, b)
    if names.kind == "models":
        pairs = await _read_models(analyst, names, selection)
    else:
        pairs = await _read_pools(analyst, names, selection)
    return names, pairs, await _read_votes(analyst, names, selection)


async def _find_kind(analyst: Analyst, a: str, b: str, selection: Selection) -> Kind:
    """Say what the names are; fails if that is not clear, or a name is unknown."""
    if a == b:
        fail(f"{a} would be compared with itself", "name two models or two pools")
    choices: dict[Kind, set[str]] = {
        "models": await _names(analyst, "model", "v_model", "v_answer", (a, b)),
        "pools": await _names(analyst, "pool", "v_pool_day", "v_outcome", (a, b)),
    }
    kinds: list[Kind] = [kind for kind, names in choices.items() if {a, b} <= names]
    if selection.kind is None and len(kinds) > 1:
        fail(f"{a} and {b} are both models and pools", "add --models or --pools")
    if selection.kind is None and kinds:
        return kinds[0]
    if selection.kind is None or selection.kind not in kinds:
        _fail_unknown(a, b, choices, selection.kind)
    return selection.kind


def _fail_unknown(a: str, b: str, choices: dict[Kind, set[str]], kind: Kind | None) -> NoReturn:
    kinds: list[Kind] = [kind] if kind else ["models", "pools"]
    lists = "; ".join(f"{each}: {', '.join(sorted(choices[each])) or 'none'}" for each in kinds)
    names = set().union(*(choices[each] for each in kinds))
    if missing := [name for name in (a, b) if name not in names]:
        fail(f"no outcome has {' or '.join(missing)}", f"choose from the stored ones ({lists})")
    fail(f"{a} and {b} are a model and a pool", f"name two of a kind ({lists})")


async def _names(
    analyst: Analyst, column: str, sums: str, view: str, names: tuple[str, str]
) -> set[str]:
    """The names in the sums, and those of the two that only replays have, which sums leave out."""
    rows = await analyst.fetch(f"SELECT DISTINCT {column} AS name FROM {sums}")  # noqa: S608 - names of ours
    stored_names = {row["name"] for row in rows}
    for name in set(names) - stored_names:
        rows = await analyst.fetch(
            f"SELECT {column} AS name FROM {view} WHERE {column} = :name LIMIT 1",  # noqa: S608 - names of ours
            {"name": name},
        )
        stored_names |= {row["name"] for row in rows}
    return stored_names


_OUTCOME = """o.outcome_id, o.prompt_hash, o.finished_at, o.answer_kind, o.agreement, o.reason,
  o.judge_model, o.verdict_parse, o.is_replay, o.accepted"""


async def _read_models(analyst: Analyst, names: Names, selection: Selection) -> list[Pair]:
    both = {"a": names.a, "b": names.b}
    answers = await analyst.fetch(
        f"""SELECT {_OUTCOME}, a.model, a.member, a.status, a.attempts, a.cost_usd, a.latency_ms,
          a.is_right, o.n_asked AS n_members,
          CASE WHEN o.accepted IS NOT NULL THEN (
            SELECT COUNT(*) FROM v_answer r WHERE r.outcome_id = a.outcome_id AND r.is_right
          ) ELSE 0 END AS n_right
        FROM v_answer a JOIN v_outcome o ON o.outcome_id = a.outcome_id
        WHERE a.model IN (:a, :b) AND a.status <> 'unasked' AND o.status <> 'cancelled'
          {selection.conditions()}
        ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {2 * MOST_OUTCOMES}""",  # noqa: S608 - as above
        both | selection.parameters(),
    )
    _note_limit(len(answers))
    judge = " AND p.judge_model = :judge" if selection.judge else ""
    verdicts = await analyst.fetch(
        f"""SELECT p.outcome_id, p.judge_model, p.model_a, p.model_b, p.verdict, p.is_consistent,
          p.is_by_margin
        FROM v_pair p JOIN v_outcome o ON o.outcome_id = p.outcome_id
        WHERE (p.model_a = :a AND p.model_b = :b OR p.model_a = :b AND p.model_b = :a)
          {judge} {selection.conditions()}""",  # noqa: S608 - as above
        both | selection.parameters() | ({"judge": selection.judge} if judge else {}),
    )
    return pair_models(names, answers, verdicts)


async def _read_pools(analyst: Analyst, names: Names, selection: Selection) -> list[Pair]:
    if selection.pool or selection.judge:
        fail("--pool and --judge choose among outcomes of models", "leave them out for two pools")
    outcomes = await analyst.fetch(
        f"""SELECT {_OUTCOME}, o.pool, o.status, o.cost_usd, o.latency_ms FROM v_outcome o
        WHERE o.pool IN (:a, :b) {selection.conditions()}
        ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {2 * MOST_OUTCOMES}""",  # noqa: S608 - as above
        {"a": names.a, "b": names.b} | selection.parameters(),
    )
    _note_limit(len(outcomes))
    return pair_pools(names, outcomes)


def _note_limit(n_rows: int) -> None:
    if n_rows == 2 * MOST_OUTCOMES:
        note(f"fusewire: only the newest {MOST_OUTCOMES:,} outcomes are compared")


async def _read_votes(analyst: Analyst, names: Names, selection: Selection) -> list[HumanVote]:
    rows = await analyst.fetch(
        f"""SELECT t.outcome_id, t.choice, t.agrees, t.pool, o.winner_model,
          m.model AS choice_model
        FROM v_vote t JOIN v_outcome o ON o.outcome_id = t.outcome_id
        LEFT JOIN v_answer m ON m.outcome_id = t.outcome_id AND m.member = t.choice
        WHERE 1 = 1 {selection.conditions()}""",  # noqa: S608 - as above
        selection.parameters(),
    )
    return map_votes(names, rows)
