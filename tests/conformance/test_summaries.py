"""The views of sums say what plain arithmetic on the rows of outcomes says, on both databases.

The expected rows are computed here, in Python and anew; only the tables of outcomes are read.
"""

import asyncio
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text

from fusewire.contracts import (
    CONTROL,
    MERGED,
    Answer,
    Candidate,
    Outcome,
    PlannedJudge,
    Usage,
    Verdict,
)
from fusewire.settings import Database
from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.store.tables import answers, outcomes, verdicts, votes
from fusewire.testing.factories import make_candidate, make_member, make_outcome, make_plan
from fusewire.testing.factories import make_prompt as new_prompt
from fusewire_judge.model import ReceivedCandidate
from fusewire_judge.recent import FusionRecord
from fusewire_judge.repository.results import Results

Row = dict[str, Any]
Decided = tuple[Outcome, FusionRecord]

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
# On both sides of midnight in UTC, and where another time zone has another day.
TIMES = [
    MIDNIGHT + timedelta(days=days, microseconds=offset)
    for days, offset in product((0, 1), (-1, 0, 1, 3_600_000_000, 82_800_000_000))
]
MEMBERS = (
    make_member("a", model="m1", family="f1"),
    make_member("b", model="m2", family="f2", tier="edge"),
    # Two members of one model, and a model that runs in two places.
    make_member("c", model="m2", family="f2"),
    make_member("d", model="m3", family="f1"),
)
JURY = (
    PlannedJudge(model="j1", tier="remote", family="f1"),
    PlannedJudge(model="j2", tier="edge", family="none"),
)
LATENCIES = (None, 0.4, 1.0, 9.99, 10.0, 10.01, 1259.0, 1259.1, 9_999_999.0, 2e7)

# -- outcomes of all kinds --------------------------------------------------------------------


def decided(rng: Random, number: int) -> Decided:
    """An outcome, as a judge may decide it."""
    gold = rng.random() < 0.5
    prompt = new_prompt(
        tenant=rng.choice(("acme", "zoo")), custom_id=f"q{number}", pool=rng.choice(("p1", "p2"))
    )
    status = rng.choice(("fused", "selected", "voted", "single", "failed", "expired", "cancelled"))
    panel = tuple(_answer(rng, member.name, gold=gold) for member in MEMBERS)
    if status == "expired":
        panel = ()
    winner = rng.choice([*panel, None]) if panel else None
    finished_at = rng.choice(TIMES)
    outcome = make_outcome(
        prompt,
        status=status,
        is_degraded=rng.random() < 0.3,
        mode=rng.choice(("best-of", "merge", "debate")),
        config_hash=rng.choice((None, "0123456789ab", "ba9876543210")),
        winner=winner.member if winner else None,
        answers=tuple(
            answer.model_copy(update={"is_winner": answer is winner}) for answer in panel
        ),
        verdicts=_verdicts(rng) if panel else (),
        judge_model=rng.choice((None, "j1", "jury")),
        judge_rung=rng.choice((None, "strict", "repaired", "reasked", "fallback")),
        agreement=rng.choice((None, 0.5, 1.0)),
        answer_kind=rng.choice((None, "open", "number", "tool_call")),
        is_replay=rng.random() < 0.2,
        accepted=rng.random() < 0.6 if gold and status != "cancelled" else None,
        cost_usd=rng.choice((None, 0.0, 0.003, 0.1, 0.2)),
        submitted_at=finished_at - timedelta(milliseconds=rng.choice(LATENCIES) or 0),
        finished_at=finished_at,
        panel_ms=rng.choice(LATENCIES),
        judge_ms=rng.choice(LATENCIES),
    )
    plan = make_plan(prompt, MEMBERS, judge=JURY[0], jury=JURY)
    received = {
        (0, answer.call): ReceivedCandidate(_candidate(answer), finished_at, 0)
        for answer in panel
        if answer.call
    }
    return outcome, FusionRecord(prompt, "0" * 64, plan, 0, received=received)


def _answer(rng: Random, name: str, *, gold: bool) -> Answer:
    member = next(member for member in MEMBERS if member.name == name)
    status = rng.choice(("ok", "ok", "ok", "error", "missing", "unasked"))
    answer = Answer(member=name, model=member.model, tier=member.tier, status=status)
    if status in ("missing", "unasked"):
        return answer
    usage = Usage(prompt_tokens=rng.randrange(99), completion_tokens=rng.randrange(9))
    fields = {
        "round": 0,
        "call": name,
        "vote_group": rng.choice((None, 0, 1)) if status == "ok" else None,
        "is_right": (status == "ok" and rng.random() < 0.5) if gold else None,
        "latency_ms": rng.choice(LATENCIES),
        "usage": rng.choice((None, usage)),
        "cost_usd": rng.choice((None, 0.0, 0.01, 0.3)),
    }
    return answer.model_copy(update=fields)


def _candidate(answer: Answer) -> Candidate:
    return make_candidate(call=answer.member, model=answer.model, tier=answer.tier)


def _verdicts(rng: Random) -> tuple[Verdict, ...]:
    found: list[Verdict] = []
    for turn, judge in product(("verdict", "pair", "guard"), JURY):
        if rng.random() < 0.5:
            found += _turn(rng, turn, judge)
    return tuple(found)


def _turn(rng: Random, turn: str, judge: PlannedJudge) -> list[Verdict]:
    """What one judge says of answers: in two opposite orders, in one of them, or by margin."""
    shown = [member.name for member in rng.sample(MEMBERS, 2 if turn == "pair" else 3)]
    if turn == "guard":
        shown = [shown[0], MERGED]
    control = rng.choice((None, None, None, "null"))
    if control:
        shown.insert(rng.randrange(3), CONTROL)
    kind = "listwise" if turn == "verdict" else turn
    chars = {name: rng.choice((10, 20, 20)) for name in shown}
    orders = [shown, shown[::-1]] if rng.random() < 0.8 else [shown]
    calls = []
    for number, order in enumerate(orders, 1):
        winner = rng.choice([*order, *order, None])
        verdict = Verdict(
            call=f"{turn}-{JURY.index(judge) + 1}-{number}",
            kind=kind,
            judge_model=judge.model,
            shown=tuple(order),
            chars=tuple(chars[name] for name in order),
            control=control,
            winner=winner,
            rung=rng.choice(("strict", "repaired", "reasked")) if winner else None,
            logprobs=tuple(-1.0 for _ in order) if len(orders) == 1 and winner else (),
            void=None if winner else "not_json",
        )
        calls.append(verdict)
    winners = [verdict.winner for verdict in calls if verdict.winner]
    flags: Row = {}
    if CONTROL in winners:
        flags = {"void": "picked_control"}
    elif len(winners) == 2:
        flags = {"is_consistent": winners[0] == winners[1]}
    return [verdict.model_copy(update=flags) for verdict in calls]


def _store(batch: Sequence[Decided], connection: Connection) -> None:
    Results(connection).add_outcomes(batch, MIDNIGHT)


async def add(store: Store, batch: Sequence[Decided]) -> None:
    await store.run(partial(_store, batch), write=True)


async def add_votes(store: Store, batch: Iterable[Decided], rng: Random) -> None:
    """People vote on some of them."""
    rows = []
    for outcome, _ in batch:
        for voter in range(rng.choice((0, 0, 1, 3))):
            choice = rng.choice(("a", "b", "fused", "tie", "none"))
            row = {"fusion_id": outcome.fusion_id, "voter_hash": str(voter), "choice": choice}
            rows.append({**row, "created_at": MIDNIGHT, "changed_at": MIDNIGHT})
    async with store.write() as connection:
        await connection.execute(insert(votes), rows)


# -- the views, by plain arithmetic -----------------------------------------------------------


class Stored:
    """The rows of outcomes, and what the views should say of them."""

    def __init__(self, rows: dict[str, list[Row]]) -> None:
        self.outcomes = {row["fusion_id"]: row for row in rows["outcomes"]}
        self.answers: dict[str, list[Row]] = defaultdict(list)
        self.verdicts: dict[str, list[Row]] = defaultdict(list)
        self.votes: dict[str, list[str]] = defaultdict(list)
        for row in rows["answers"]:
            self.answers[row["fusion_id"]].append(row)
        for row in rows["verdicts"]:
            self.verdicts[row["fusion_id"]].append(row)
        for row in rows["votes"]:
            self.votes[row["fusion_id"]].append(row["choice"])
        self.originals = [row for row in self.outcomes.values() if not row["is_replay"]]

    @staticmethod
    async def read(store: Store) -> "Stored":
        rows = {}
        async with store.read() as connection:
            for table in (outcomes, answers, verdicts, votes):
                found = await connection.execute(select(table))
                rows[table.name] = [dict(row) for row in found.mappings()]
        return Stored(rows)

    def pool_day(self) -> list[Row]:
        groups = grouped(
            self.originals, lambda o: (day(o), o["pool"], o["mode"], o["config_hash"] or None)
        )
        return [
            dict(zip(("day", "pool", "strategy", "config_hash"), key, strict=True))
            | pool_sums(rows)
            for key, rows in groups.items()
        ]

    def tenant_day(self) -> list[Row]:
        groups = grouped(self.originals, lambda o: (day(o), o["tenant"]))
        counts = ("outcomes", "failed", "cancelled", "degraded", "n_unpriced")
        names = (*counts, "cost_usd", "cost_priced_usd")
        return [
            {"day": key[0], "tenant": key[1]} | {name: pool_sums(rows)[name] for name in names}
            for key, rows in groups.items()
        ]

    def model_rows(self, *names: str) -> list[Row]:
        """Rows of v_model, v_model_day or v_ablation before their rates, by these keys."""
        parts = [
            {**answer, "outcome": o, "day": day(o), "pool": o["pool"], "panel": panel}
            | {"tier": "hosted" if answer["tier"] == "remote" else answer["tier"]}
            for o in self.originals
            for panel in [self.answers[o["fusion_id"]]]
            for answer in panel
        ]
        groups = grouped(parts, lambda part: tuple(part[name] for name in names))
        rows = [
            dict(zip(names, key, strict=True)) | model_sums(found) for key, found in groups.items()
        ]
        return [row for row in rows if row["asked"]]

    def win_matrix(self) -> list[Row]:
        games: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for fusion_id, said in self.verdicts.items():
            models = {answer["member"]: answer["model"] for answer in self.answers[fusion_id]}
            by_call = {verdict["call"]: verdict for verdict in said}
            pool = self.outcomes[fusion_id]["pool"]
            for verdict in said:
                for winner, loser, score in results(verdict, by_call, models):
                    games[pool, verdict["judge_model"], winner, loser].append(score)
                    games[pool, verdict["judge_model"], loser, winner].append(1 - score)
        names = "pool", "judge_model", "model", "opponent"
        return [
            dict(zip(names, key, strict=True))
            | {"n": len(scores), "wins": scores.count(1), "ties": scores.count(0.5)}
            | {"win_rate": sum(scores) / len(scores)}
            for key, scores in games.items()
        ]

    def judge_bias(self) -> list[Row]:
        readable = [
            {**verdict, "pool": self.outcomes[fusion_id]["pool"]}
            for fusion_id, said in self.verdicts.items()
            for verdict in said
            if verdict["winner"] and not verdict["control"]
        ]
        groups = grouped(readable, lambda v: (v["pool"], v["judge_model"]))
        return [
            {"pool": pool, "judge_model": judge} | bias_sums(rows)
            for (pool, judge), rows in groups.items()
        ]

    def latency_hist(self) -> list[Row]:
        bounds = sorted({round(10 ** (step / 10)) for step in range(71)})
        counts: Counter[tuple[Any, ...]] = Counter()
        for o in self.originals:
            spans = [("total", None, o["latency_ms"]), ("panel", None, o["panel_ms"])]
            spans.append(("judge", o["judge_model"], o["judge_ms"]))
            spans += [("call", a["model"], a["latency_ms"]) for a in self.answers[o["fusion_id"]]]
            for stage, model, ms in spans:
                if ms is not None:
                    bound = next((bound for bound in bounds if ms <= bound), bounds[-1])
                    counts[day(o), o["pool"], stage, model, bound] += 1
        names = "day", "pool", "stage", "model", "bucket_ms", "n"
        return [dict(zip(names, (*key, n), strict=True)) for key, n in counts.items()]

    def lift(self) -> list[Row]:
        rows = []
        for pool in sorted({o["pool"] for o in self.outcomes.values()}):
            gold = [o for o in self.originals if o["pool"] == pool and o["accepted"] is not None]
            singles = {
                row["model"]: row["rights"]
                for row in self.model_rows("pool", "model")
                if row["pool"] == pool
            }
            oracle = sum(any(a["is_right"] for a in self.answers[o["fusion_id"]]) for o in gold)
            if gold and singles:
                accepted = sum(o["accepted"] for o in gold)
                rows.append(lift_row(pool, "gold", len(gold), accepted, oracle, singles))
            rows += self._voted_lift(pool)
        return rows

    def _voted_lift(self, pool: str) -> list[Row]:
        n, fused, oracle, singles = 0, 0, 0, Counter[str]()
        for fusion_id, choices in self.votes.items():
            outcome = self.outcomes.get(fusion_id)
            if outcome is None or outcome["pool"] != pool or outcome["is_replay"]:
                continue
            # A vote for the outcome's own answer is one for the winner, where there is one.
            winner = outcome["winner"] or "fused"
            named = [winner if choice == "fused" else choice for choice in choices]
            (choice, most), *others = Counter(named).most_common()
            is_shared = bool(others) and others[0][1] == most
            if is_shared or choice == "tie":
                continue
            n += 1
            fused += choice in ("fused", outcome["winner"])
            oracle += choice != "none"
            for a in self.answers[fusion_id]:
                singles[a["model"]] += choice == a["member"]
        return [lift_row(pool, "votes", n, fused, oracle, singles)] if n and singles else []


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def day(outcome: Row) -> date:
    return outcome["finished_at"].date()  # type: ignore[no-any-return]


def count(rows: Iterable[Row], holds: Callable[[Row], Any]) -> int:
    return sum(bool(holds(row)) for row in rows)


def total_usd(rows: Sequence[Row], unpriced: int) -> float | None:
    return None if unpriced else math.fsum(row["cost_usd"] or 0 for row in rows)


def ratio(numerator: float | None, denominator: float) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def pool_sums(rows: list[Row]) -> Row:
    unpriced = count(rows, lambda o: o["cost_usd"] is None)
    cost_usd = total_usd(rows, unpriced)
    labelled = count(rows, lambda o: o["accepted"] is not None)
    accepted = count(rows, lambda o: o["accepted"])
    return {
        "outcomes": len(rows),
        "failed": count(rows, lambda o: o["status"] in ("failed", "expired")),
        "cancelled": count(rows, lambda o: o["status"] == "cancelled"),
        "fallbacks": count(rows, lambda o: o["judge_rung"] == "fallback"),
        "degraded": count(rows, lambda o: o["is_degraded"]),
        "disagreements": count(
            rows,
            lambda o: o["agreement"] == 0.5 and o["answer_kind"] in ("number", "tool_call"),
        ),
        "verdicts_repaired": count(rows, lambda o: o["judge_rung"] == "repaired"),
        "cost_usd": cost_usd,
        "n_unpriced": unpriced,
        "labelled": labelled,
        "accepted": accepted,
        "cost_per_accepted_usd": ratio(cost_usd, accepted) if labelled == len(rows) else None,
        "cost_priced_usd": total_usd(rows, 0),
    }


def model_sums(rows: list[Row]) -> Row:
    """Sums of answers; each row has its outcome and its panel."""
    asked_rows = [a for a in rows if a["status"] != "unasked"]
    labelled = [a for a in rows if a["outcome"]["accepted"] is not None]
    sole = [
        a for a in labelled if a["is_right"] and count(a["panel"], lambda b: b["is_right"]) == 1
    ]
    unpriced = count(rows, lambda a: a["status"] == "ok" and a["cost_usd"] is None)
    wins = [a for a in rows if a["is_winner"]]
    return {
        "asked": len(asked_rows),
        "answered": count(rows, lambda a: a["status"] == "ok"),
        "failed": count(rows, lambda a: a["status"] in ("error", "missing")),
        "wins": len(wins),
        "sole_wins": count(
            wins,
            lambda a: (
                a["vote_group"] is None
                or count(a["panel"], lambda b: b["vote_group"] == a["vote_group"]) == 1
            ),
        ),
        "labelled": count(labelled, lambda a: a["status"] != "unasked"),
        "rights": count(labelled, lambda a: a["is_right"]),
        "sole_rights": len(sole),
        "losses": count(sole, lambda a: a["outcome"]["accepted"]),
        "cost_usd": total_usd(rows, unpriced),
        "tokens_in": sum(a["tokens_in"] or 0 for a in rows),
        "tokens_out": sum(a["tokens_out"] or 0 for a in rows),
        "n_unpriced": unpriced,
        "cost_priced_usd": total_usd(rows, 0),
    }


def model_view(row: Row) -> Row:
    """The rest of a row of v_model and v_model_day."""
    shown = {name: row[name] for name in row if name not in ("sole_wins", "sole_rights", "losses")}
    return shown | {
        "win_share": ratio(row["wins"], row["answered"]),
        "failure_rate": ratio(row["failed"], row["asked"]),
        "accuracy": ratio(row["rights"], row["labelled"]),
        "cost_per_win_usd": ratio(row["cost_usd"], row["wins"]),
        "tokens": row["tokens_in"] + row["tokens_out"],
    }


def ablation_view(row: Row) -> Row:
    points = ratio(100 * row["losses"], row["labelled"]) or 0
    return {
        **{name: row[name] for name in ("pool", "model", "wins", "sole_wins", "cost_usd")},
        "n": row["labelled"],
        "score_loss": ratio(row["losses"], row["labelled"]),
        "sole_best_rate": ratio(row["sole_rights"], row["labelled"]),
        "cost_per_point": ratio(row["cost_usd"], points),
    }


def results(
    verdict: Row, by_call: dict[str, Row], models: dict[str, str]
) -> list[tuple[str, str, float]]:
    """What a verdict says of two models, as (model, other, score); nothing of one with itself."""
    winner = models.get(verdict["winner"])
    if verdict["void"] or verdict["kind"] == "guard" or winner is None:
        return []
    swap = by_call.get(verdict["swap_of"])
    is_first = swap is not None and verdict["call"] < swap["call"]
    if swap and is_first and not verdict["is_consistent"]:
        loser = models.get(swap["winner"])
        return [(winner, loser, 0.5)] if loser and loser != winner else []
    if not verdict["is_by_margin"] and not (is_first and verdict["is_consistent"]):
        return []
    losers = [models[name] for name in parsed(verdict["shown"]) if name in models]
    return [(winner, loser, 1.0) for loser in losers if loser != winner]


def parsed(shown: str) -> list[str]:
    found: list[str] = json.loads(shown)
    return found


def bias_sums(rows: list[Row]) -> Row:
    first_wins = count(rows, lambda v: v["winner"] == parsed(v["shown"])[0])
    mixed = [v for v in rows if 0 < v["n_own_family"] < v["n_shown"]]
    lengths = [
        (sorted(json.loads(v["chars"]))[-2:], chars_of_winner(v)) for v in rows if v["n_shown"] > 1
    ]
    longest = [(most, own) for (second, most), own in lengths if second < most]
    return {
        "presentations": len(rows),
        "first_wins": first_wins,
        "second_wins": count(rows, lambda v: v["winner"] == parsed(v["shown"])[1]),
        "first_win_rate": first_wins / len(rows),
        "fair_first_rate": math.fsum(1 / len(parsed(v["shown"])) for v in rows) / len(rows),
        "swapped": count(rows, lambda v: v["is_consistent"] is not None) // 2,
        "flips": count(rows, lambda v: v["is_consistent"] is False) // 2,
        "longer_wins": sum(most == own for most, own in longest),
        "longer_shown": len(longest),
        "own_family_wins": count(mixed, lambda v: family(v["winner"]) == "f1"),
        "own_family_shown": len(mixed),
        "repaired": count(rows, lambda v: v["rung"] == "repaired"),
        "reasked": count(rows, lambda v: v["rung"] == "reasked"),
    }


def chars_of_winner(verdict: Row) -> int:
    chars: list[int] = json.loads(verdict["chars"])
    return chars[parsed(verdict["shown"]).index(verdict["winner"])]


def family(member: str) -> str | None:
    return {member.name: member.family for member in MEMBERS}.get(member)


def lift_row(
    pool: str, source: str, n: int, fused: int, oracle: int, singles: dict[str, int]
) -> Row:
    best = min(singles, key=lambda model: (-singles[model], model))
    return {
        "pool": pool,
        "audit_source": source,
        "n": n,
        "fused_score": fused / n,
        "best_fixed_single": best,
        "best_single_score": singles[best] / n,
        "oracle_score": oracle / n,
        "lift": (fused - singles[best]) / n,
        "gap_to_oracle": (oracle - fused) / n,
    }


# -- the comparison ---------------------------------------------------------------------------


def normal(row: Row) -> Row:
    """A row with days as texts, and floats that do not show the order of addition."""
    return {
        name: str(value)
        if isinstance(value, date)
        else round(value, 9) + 0.0
        if isinstance(value, float)
        else value
        for name, value in row.items()
    }


async def check(store: Store) -> dict[str, int]:
    """Compare every view of sums with arithmetic; returns how many rows each has."""
    stored = await Stored.read(store)
    model_rows = stored.model_rows("pool", "model", "tier")
    model_days = stored.model_rows("day", "pool", "model", "tier")
    expected = {
        "v_pool_day": stored.pool_day(),
        "v_tenant_day": stored.tenant_day(),
        "v_model": [model_view(row) for row in model_rows],
        "v_model_day": [model_view(row) for row in model_days],
        "v_win_matrix": stored.win_matrix(),
        "v_judge_bias": stored.judge_bias(),
        "v_ablation": [ablation_view(row) for row in stored.model_rows("pool", "model")],
        "v_lift": stored.lift(),
        "v_latency_hist": stored.latency_hist(),
    }
    for view, rows in expected.items():
        async with store.read() as connection:
            found = (await connection.execute(text(f"SELECT * FROM {view}"))).mappings().all()
        assert by_text(found) == by_text(rows), view
    return {view: len(rows) for view, rows in expected.items()}


def by_text(rows: Iterable[Any]) -> list[Row]:
    normal_rows = [dict(sorted(normal(dict(row)).items())) for row in rows]
    return sorted(normal_rows, key=str)


@pytest.mark.parametrize("seed", range(4))
async def test_the_sums_are_those_of_the_rows(store: Store, seed: int) -> None:
    rng = Random(seed)
    batch = [decided(rng, number) for number in range(120)]
    for start in range(0, len(batch), 25):
        await add(store, batch[start : start + 25])
    await add_votes(store, batch, rng)

    counts = await check(store)
    assert all(counts.values()), counts

    await store.run(summaries.rebuild, write=True)
    assert await check(store) == counts


async def test_what_is_subtracted_and_deleted_leaves_the_sums_of_the_rest(store: Store) -> None:
    rng = Random(9)
    batch = [decided(rng, number) for number in range(90)]
    await add(store, batch)
    keys = [outcome.fusion_id for outcome, _ in batch]

    await store.run(partial(_delete, keys[:60]), write=True)
    counts = await check(store)
    await store.run(summaries.rebuild, write=True)
    assert await check(store) == counts

    await store.run(partial(_delete, keys[60:]), write=True)
    assert not any((await check(store)).values())


def _delete(keys: Sequence[str], connection: Connection) -> None:
    summaries.subtract(connection, keys)
    for table in (verdicts, answers, outcomes):
        connection.execute(delete(table).where(table.c.fusion_id.in_(keys)))


async def test_a_model_that_is_gone_is_nobodys_best(store: Store) -> None:
    """Its sums are rows of zeros, which a model that is always wrong does not fall behind."""
    gold = new_prompt(pool="p1", custom_id="x"), new_prompt(pool="p1", custom_id="y")
    for prompt, member in zip(gold, MEMBERS[:2], strict=True):
        answer = Answer(
            member=member.name, model=member.model, tier=member.tier, status="ok", is_right=False
        )
        outcome = make_outcome(prompt, accepted=False, answers=(answer,))
        await add(store, [(outcome, FusionRecord(prompt, "", make_plan(prompt), 0))])
    await store.run(partial(_delete, [gold[0].fusion_id]), write=True)

    counts = await check(store)
    assert counts["v_lift"] == 1


async def test_writers_at_the_same_time_lose_nothing(store: Store, database: Database) -> None:
    rng = Random(3)
    batch = [decided(rng, number) for number in range(120)]
    other = Store(database)
    parts = [batch[start : start + 5] for start in range(0, len(batch), 5)]

    async def write(writer: Store, own_parts: Sequence[Sequence[Decided]]) -> None:
        for part in own_parts:
            await add(writer, part)

    try:
        await asyncio.gather(
            write(store, parts[:8]),
            write(other, parts[8:16]),
            write(store, parts[16:]),
            other.run(summaries.rebuild, write=True),
        )
    finally:
        await other.close()

    await check(store)
