"""`fusewire rejudge`: a batch's stored answers under another judge, other criteria, another mode."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import bindparam, text

from fusewire import ids
from fusewire.contracts import Candidate, Message, Outcome, Plan, Prompt, RecordedAnswer, Round
from fusewire.references.texts import excerpt
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire_cli.batch import ANSWERED
from fusewire_cli.eval.measures import kappa, wilson
from fusewire_cli.eval.suite import check
from fusewire_cli.eval.table import LEAST_N
from fusewire_cli.fusing import fuse, run
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import client, settings
from fusewire_ingest.admission.admit import MOST_BATCH_CHARS, RefusedError, Submission
from fusewire_ingest.admission.rules import pool_rules
from fusewire_judge.scoring.gold import is_right

PAGE = 200

_FUSIONS = text(
    "SELECT p.fusion_id, p.body AS prompt, f.plan, o.body AS outcome FROM prompts p"
    " JOIN fusions f ON f.fusion_id = p.fusion_id LEFT JOIN outcomes o ON o.fusion_id = p.fusion_id"
    " WHERE p.tenant = 'default' AND p.batch_id = :batch AND p.fusion_id > :after ORDER BY p.fusion_id LIMIT :most"
)
_CANDIDATES = text("SELECT body FROM candidates WHERE fusion_id IN :keys").bindparams(
    bindparam("keys", expanding=True)
)
_ROUNDS = text("SELECT body FROM rounds WHERE fusion_id IN :keys").bindparams(
    bindparam("keys", expanding=True)
)


@dataclass(frozen=True)
class PolicyChange:
    """What is done in another way; None leaves it as it was."""

    judge: str | None = None
    criteria: str | None = None
    mode: str | None = None
    pool: str | None = None

    def batch(self, name: str) -> str:
        """The id of the batch that a batch is rejudged into."""
        decided = json.dumps([self.judge, self.criteria, self.mode, self.pool])
        return f"{name}.rejudge-{ids.digest('rejudge', decided).hex()[:8]}"


@dataclass(frozen=True)
class Stored:
    """A fusion as it stands in the store; `outcome` is None while it runs."""

    prompt: Prompt
    plan: Plan | None
    outcome: Outcome | None
    rounds: tuple[Round, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class RejudgeReport:
    """What a rejudged batch says beside the old one."""

    prompts: int
    running: int
    """Not rejudged: without an outcome yet."""
    unanswered: int
    """Not rejudged: no member answered."""
    rejudged: int
    winners: int
    """Outcomes that have a winner before and after."""
    winners_changed: int
    agreement: float | None
    """Share of the same winner; None below 30 outcomes with both."""
    agreement_low: float
    agreement_high: float
    kappa: float | None
    """Cohen's kappa between the winners; None below 30 outcomes with both, or where chance explains all."""
    labelled: int
    accepted_before: int
    accepted_after: int
    degraded_before: int
    degraded_after: int
    failed_before: int
    failed_after: int


def recorded(stored: Stored) -> tuple[RecordedAnswer, ...]:
    """The answers and failures that the members of a panel took part with, before any debate."""
    if stored.prompt.recorded:
        return stored.prompt.recorded
    if stored.plan is None or stored.outcome is None:
        return ()
    took_part = {a.member for a in stored.outcome.answers if a.status in ("ok", "error")}
    said = _panel(stored.candidates, stored.rounds)
    return tuple(
        RecordedAnswer(
            member=member.name,
            model=member.model,
            family=member.family,
            weight=member.weight,
            content=one.content if one.ok else None,
            tool_calls=one.tool_calls if one.ok else (),
            error_code=None if one.ok else (one.error.code if one.error else "no_answer"),
            prompt_tokens=one.usage.prompt_tokens if one.usage else 0,
            completion_tokens=one.usage.completion_tokens if one.usage else 0,
            latency_ms=max(one.latency_ms, 0.0),
            cost_usd=one.cost_usd,
        )
        for member in stored.plan.members
        if member.name in took_part and (one := said.get(member.name))
    )


def _panel(candidates: Iterable[Candidate], rounds: Iterable[Round]) -> dict[str, Candidate]:
    """By member, its first answer, or its failure if it has none: a panel can be asked in several rounds."""
    calls = {(r.round, c.name) for r in rounds for c in r.calls if c.kind == "answer"}
    said: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda c: (not c.ok, c.round, c.call)):
        if one.member is not None and (one.round == 0 or (one.round, one.call) in calls):
            said.setdefault(one.member, one)
    return said


def submission(prompt: Prompt, said: Sequence[RecordedAnswer], change: PolicyChange) -> str:
    """The prompt as it was submitted, with its answers and what is changed. Residency stays as it was."""
    body: dict[str, Any] = {
        "custom_id": prompt.custom_id,
        "pool": change.pool or prompt.pool,
        "mode": change.mode or prompt.mode,
        "messages": [_turn(message) for message in excerpt(prompt.messages)],
        **prompt.sampling.model_dump(mode="json", exclude_defaults=True),
        "recorded": [one.model_dump(mode="json", exclude_defaults=True) for one in said],
        "residency": prompt.residency,
    }
    if prompt.tools:
        body["tools"] = [
            {"type": "function", "function": tool.model_dump(mode="json")} for tool in prompt.tools
        ]
        body["tool_choice"] = prompt.tool_choice
        body["parallel_tool_calls"] = prompt.parallel_tool_calls
    given = {"judge": change.judge or prompt.judge, "criteria": change.criteria or prompt.criteria}
    if prompt.gold:
        body["gold"] = prompt.gold.model_dump(mode="json")
    return json.dumps({**body, **{key: value for key, value in given.items() if value}})


def _turn(message: Message) -> dict[str, Any]:
    """A message as OpenAI's chat completions write it."""
    turn = message.model_dump(mode="json", exclude_defaults=True, exclude={"tool_calls"})
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return turn


def compare(stored: Sequence[Stored], after: Mapping[str, Mapping[str, Any]]) -> RejudgeReport:
    """Old outcomes beside new ones.

    Args:
        stored: the whole batch.
        after: by custom_id, the new outcomes of those that were rejudged, as the API shows them.
    """
    pairs = [
        (s.prompt, s.outcome, after[s.prompt.custom_id])
        for s in stored
        if s.prompt.custom_id in after
    ]
    both = [
        (old.winner, new["winner"])
        for _, old, new in pairs
        if old and old.winner and new.get("winner")
    ]
    same = sum(old == new for old, new in both)
    rate = wilson(same, len(both))
    labelled = [(prompt.gold, old, new) for prompt, old, new in pairs if prompt.gold]
    running = sum(one.outcome is None for one in stored)
    return RejudgeReport(
        prompts=len(stored),
        running=running,
        unanswered=len(stored) - running - len(pairs),
        rejudged=len(pairs),
        winners=len(both),
        winners_changed=len(both) - same,
        agreement=rate.value if len(both) >= LEAST_N else None,
        agreement_low=rate.low,
        agreement_high=rate.high,
        kappa=kappa([a for a, _ in both], [str(b) for _, b in both])
        if len(both) >= LEAST_N
        else None,
        labelled=len(labelled),
        accepted_before=sum(
            old is not None and old.status in ANSWERED and is_right(old.content, gold)
            for gold, old, _ in labelled
        ),
        accepted_after=sum(
            new["status"] in ANSWERED and is_right(new["content"], gold)
            for gold, _, new in labelled
        ),
        degraded_before=sum(old is not None and old.is_degraded for _, old, _ in pairs),
        degraded_after=sum(bool(new.get("is_degraded")) for _, _, new in pairs),
        failed_before=sum(old is not None and old.status not in ANSWERED for _, old, _ in pairs),
        failed_after=sum(new["status"] not in ANSWERED for _, _, new in pairs),
    )


def rejudge(batch: str, change: PolicyChange, *, as_json: bool, window: int) -> None:
    """Fuse a batch's stored answers again and say what came out differently."""
    if change == PolicyChange():
        fail("nothing would change", "give --judge, --criteria, --mode or --pool")
    into = change.batch(batch)
    if len(into) > MOST_BATCH_CHARS:
        fail(f"the name of the new batch, {into}, is longer than {MOST_BATCH_CHARS} characters")
    config = settings()
    stored = asyncio.run(_read(config, batch))
    if not stored:
        fail(
            f"there is no batch '{batch}'",
            'list them: fusewire query "select distinct batch_id from v_outcome"',
        )
    said = {one.prompt.custom_id: recorded(one) for one in stored if one.outcome}
    bodies = {
        one.prompt.custom_id: submission(one.prompt, said[one.prompt.custom_id], change)
        for one in stored
        if any(r.error_code is None for r in said.get(one.prompt.custom_id, ()))
    }
    if not bodies:
        fail(f"batch '{batch}' holds no answers to judge again", "wait until it has outcomes")
    _check(config, {change.pool or one.prompt.pool for one in stored}, change)
    note(f"rejudging {len(bodies)} of {len(stored)} prompts as batch {into}")

    async def main() -> dict[str, Mapping[str, Any]]:
        async with client(config) as api:
            return await fuse(api, into, bodies, window)

    _show(batch, into, compare(stored, run(main())), as_json=as_json)


def _check(config: Settings, pools: Iterable[str], change: PolicyChange) -> None:
    rules = pool_rules(config)
    try:
        for pool in pools:
            check(Submission(prompt="-", pool=pool, mode=change.mode, judge=change.judge), rules)
    except RefusedError as exc:
        fail(
            exc.message,
            "give --pool, where the batch's own pool is gone" if exc.param == "pool" else "",
        )


def _show(batch: str, into: str, found: RejudgeReport, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"batch_id": batch, "rejudged_batch_id": into, **asdict(found)}))
        return
    bounds = f"{found.agreement_low:.1%} to {found.agreement_high:.1%}"
    agreement = "–" if found.agreement is None else f"{found.agreement:.1%}"
    lines: list[tuple[str, object]] = [
        (
            "rejudged",
            f"{found.rejudged} of {found.prompts} ({found.running} running, {found.unanswered} unanswered)",
        ),
        (
            "winners changed",
            f"{found.winners_changed} of {found.winners} with a winner before and after",
        ),
        ("agreement", f"{agreement} (95 % interval {bounds})"),
        ("Cohen's kappa", "–" if found.kappa is None else f"{found.kappa:.3f}"),
        (
            "accepted",
            f"{found.accepted_before} → {found.accepted_after} of {found.labelled} labelled",
        ),
        ("degraded", f"{found.degraded_before} → {found.degraded_after}"),
        ("failed", f"{found.failed_before} → {found.failed_after}"),
        ("batch", into),
    ]
    rows(("", batch), lines, RowFormat.table)


async def _read(config: Settings, batch: str) -> list[Stored]:
    store = Store(config.database)
    try:
        await store.ping()
        await migrate.check(store)
        found: list[Stored] = []
        after = ""
        while True:
            async with store.read() as connection:
                given = {"batch": batch, "after": after, "most": PAGE}
                page = (await connection.execute(_FUSIONS, given)).all()
                keys = [row.fusion_id for row in page]
                candidates = [
                    Candidate.decode(b)
                    for (b,) in await connection.execute(_CANDIDATES, {"keys": keys})
                ]
                rounds = [
                    Round.decode(b) for (b,) in await connection.execute(_ROUNDS, {"keys": keys})
                ]
            if not page:
                return found
            found += [
                Stored(
                    prompt=Prompt.decode(row.prompt),
                    plan=Plan.decode(row.plan) if row.plan else None,
                    outcome=Outcome.decode(row.outcome) if row.outcome else None,
                    rounds=tuple(r for r in rounds if r.fusion_id == row.fusion_id),
                    candidates=tuple(c for c in candidates if c.fusion_id == row.fusion_id),
                )
                for row in page
            ]
            after = keys[-1]
    finally:
        await store.close()
