"""Pairs from rows of the views: what two models, or two pools, did for the same prompts. Pure.

Times are ISO 8601 texts or datetimes, and booleans may be 0 and 1, as the two databases give them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fusewire.analysis.compare.rows import Choice, HumanVote, Judgement, Names, Pair, Side

Row = Mapping[str, Any]

ANSWERED = frozenset({"fused", "selected", "voted", "single"})
"""The states of outcomes that hold an answer."""


@dataclass(frozen=True)
class _Verdict:
    """What judges said of the two answers of an outcome."""

    choice: Choice | None = None
    is_flip: bool = False
    judges: tuple[str, ...] = ()


def pair_models(names: Names, answers: Iterable[Row], verdicts: Iterable[Row]) -> list[Pair]:
    """Pair the answers of two models by outcome, in the order of time.

    If the same prompt was judged again from recorded answers, it counts once: as the outcome that
    made the answers, or the newest one where all are replays; a verdict is taken from the newest
    replay only if that outcome has none between the two. A model that is several members of a pool
    is the first of them by name.

    Args:
        names: the two models.
        answers: outcome_id, model, member, status, is_right, n_right, n_members, cost_usd,
            latency_ms of `v_answer`, and prompt_hash, finished_at, answer_kind, agreement, reason,
            judge_model, verdict_parse, is_replay, accepted of its outcome.
        verdicts: outcome_id, judge_model, model_a, model_b, verdict, is_consistent, is_by_margin
            of `v_pair`, of the two models.
    """
    by_outcome: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in sorted(answers, key=lambda row: str(row["member"])):
        if row["status"] != "unasked":
            by_outcome[row["outcome_id"]].setdefault(row["model"], row)
    complete = [sides for sides in by_outcome.values() if names.a in sides and names.b in sides]
    complete.sort(key=lambda sides: _order(sides[names.a]))
    by_judges = _verdicts(names, verdicts)
    replay_of = _newest_judged_replay(names, complete, by_judges)
    pairs = []
    for sides in _without_repeats(names, complete):
        a, b = sides[names.a], sides[names.b]
        replay = replay_of.get(a["prompt_hash"], "")
        verdict = by_judges.get(a["outcome_id"]) or by_judges.get(replay)
        pairs.append(_pair(_answer_side(a), _answer_side(b), a, verdict))
    return pairs


def pair_pools(names: Names, outcomes: Iterable[Row]) -> list[Pair]:
    """Pair the newest outcomes of two pools for the same prompts, in the order of time.

    Outcomes of recorded answers count only for a prompt that a pool has no other outcome of.

    Args:
        names: the two pools.
        outcomes: of `v_outcome`, also a pool's other columns that `pair_models` names.
    """
    by_prompt: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in sorted(outcomes, key=lambda row: (not row["is_replay"], _order(row))):
        if row["status"] != "cancelled":
            by_prompt[row["prompt_hash"]][row["pool"]] = row
    pairs = []
    for sides in by_prompt.values():
        if names.a in sides and names.b in sides:
            a, b = sides[names.a], sides[names.b]
            pairs.append(_pair(_outcome_side(a), _outcome_side(b), b, None))
    return sorted(pairs, key=lambda pair: pair.order)


def map_votes(names: Names, votes: Iterable[Row]) -> list[HumanVote]:
    """Say whom each vote is for.

    A vote on an outcome of one of two pools is for that pool if it is for the outcome's answer.

    Args:
        names: the two models or pools.
        votes: outcome_id, choice (a member, fused, tie, none), choice_model, winner_model, pool
            and agrees.
    """
    return [HumanVote(row["outcome_id"], _vote_choice(names, row)) for row in votes]


def _vote_choice(names: Names, row: Row) -> Choice | Literal["other"]:
    if row["choice"] == "tie":
        return "tie"
    if names.kind == "pools":
        if not row["agrees"]:
            return "other"
        return "a" if row["pool"] == names.a else "b"
    model = row["winner_model"] if row["choice"] == "fused" else row["choice_model"]
    if model == names.a:
        return "a"
    return "b" if model == names.b else "other"


def as_time(value: Any) -> datetime:
    """An aware time in UTC from what a database gives."""
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _order(row: Row) -> tuple[datetime, str]:
    return as_time(row["finished_at"]), row["outcome_id"]


def _without_repeats(names: Names, complete: Sequence[Mapping[str, Row]]) -> Iterable[Any]:
    """Outcomes that made answers, and the newest replay of prompts that have none of those."""
    rows = [sides[names.a] for sides in complete]
    originals = {row["prompt_hash"] for row in rows if not row["is_replay"]}
    newest = {row["prompt_hash"]: row["outcome_id"] for row in rows}
    for sides, row in zip(complete, rows, strict=True):
        prompt = row["prompt_hash"]
        is_newest = prompt not in originals and newest[prompt] == row["outcome_id"]
        if is_newest or not row["is_replay"]:
            yield sides


def _newest_judged_replay(
    names: Names, complete: Sequence[Mapping[str, Row]], by_judges: Mapping[str, _Verdict]
) -> dict[str, str]:
    rows = [sides[names.a] for sides in complete]
    return {
        row["prompt_hash"]: row["outcome_id"]
        for row in rows
        if row["is_replay"] and row["outcome_id"] in by_judges
    }


def _verdicts(names: Names, rows: Iterable[Row]) -> dict[str, _Verdict]:
    """The choice between the two per outcome, and whether a judge contradicted itself.

    As `v_win_matrix` counts: a verdict by margin, or one that its swap confirms, and a tie where
    the two orders named one of the two each. Several judges make one choice by majority.
    """
    by_judge: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_judge[row["outcome_id"], row["judge_model"]].append(row)
    choices: dict[str, dict[str, int]] = defaultdict(dict)
    flips: set[str] = set()
    for (outcome_id, judge), those in by_judge.items():
        choice, is_flip = _judge_choice(names, those)
        if choice is not None:
            choices[outcome_id][judge] = choice
        if is_flip:
            flips.add(outcome_id)
    return {
        outcome_id: _Verdict(
            _choice(_majority(list(signs.values()))), outcome_id in flips, tuple(sorted(signs))
        )
        for outcome_id, signs in choices.items()
    }


def _judge_choice(names: Names, rows: Sequence[Row]) -> tuple[int | None, bool]:
    """A judge's choice, None if none counts, and whether it contradicted itself.

    A comparison that both orders confirm settles an earlier contradiction.
    """
    steady = [_sign(names, row) for row in rows if row["is_by_margin"] or row["is_consistent"]]
    if steady:
        return _majority(steady), False
    in_both_orders = [row for row in rows if row["is_consistent"] is not None]
    is_flip = {_sign(names, row) for row in in_both_orders} == {1, -1}
    return (0 if is_flip else None), is_flip


def _sign(names: Names, row: Row) -> int:
    winner = row["model_a"] if row["verdict"] == "A" else row["model_b"]
    return 1 if winner == names.b else -1


def _majority(signs: Sequence[int]) -> int:
    total = sum(signs)
    return (total > 0) - (total < 0)


def _choice(sign: int) -> Choice:
    if sign == 0:
        return "tie"
    return "b" if sign > 0 else "a"


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _answer_side(row: Row) -> Side:
    is_answered = row["status"] == "ok"
    is_right = None if row["accepted"] is None else bool(row["is_right"])
    n_others = row["n_members"] - 1
    return Side(
        outcome_id=row["outcome_id"],
        is_answered=is_answered,
        is_clean=is_answered and (row["attempts"] or 1) == 1,
        is_right=is_right,
        is_alone_wrong=is_right is False and n_others > 1 and row["n_right"] == n_others,
        cost_usd=row["cost_usd"],
        latency_ms=row["latency_ms"] if is_answered else None,
    )


def _outcome_side(row: Row) -> Side:
    is_answered = row["status"] in ANSWERED
    return Side(
        outcome_id=row["outcome_id"],
        is_answered=is_answered,
        is_clean=is_answered and row["verdict_parse"] in {None, "strict"},
        is_right=_flag(row["accepted"]),
        is_alone_wrong=False,
        cost_usd=row["cost_usd"],
        latency_ms=row["latency_ms"] if is_answered else None,
    )


def _pair(a: Side, b: Side, row: Row, verdict: _Verdict | None) -> Pair:
    verdict = verdict or _Verdict()
    has_judge = row["judge_model"] is not None and row["verdict_parse"] != "fallback"
    judgement = Judgement(
        outcome_id=row["outcome_id"],
        choice=verdict.choice,
        is_flip=verdict.is_flip,
        reason=row["reason"],
        judge_model=row["judge_model"] if has_judge else None,
        agreement=row["agreement"],
        judges=verdict.judges,
    )
    return Pair(
        row["prompt_hash"], as_time(row["finished_at"]), row["answer_kind"], a, b, judgement
    )
