"""`fusewire rejudge`: fuse a batch's stored answers with another judge, criteria or mode."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusewire import ids
from fusewire.analysis.measures import LEAST_N, kappa, wilson
from fusewire.contracts import (
    ANSWERED,
    Candidate,
    Gold,
    Message,
    Outcome,
    PlannedMember,
    Prompt,
    RecordedAnswer,
    Round,
)
from fusewire.references.texts import excerpt
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.store.history import History, batch_histories
from fusewire_cli.eval.suite import check
from fusewire_cli.fusing import fuse, run
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import client, settings
from fusewire_ingest.admission.admit import MOST_BATCH_CHARS, RefusedError, Submission
from fusewire_ingest.admission.rules import pool_rules
from fusewire_judge.scoring.gold import is_right


@dataclass(frozen=True)
class PolicyChange:
    """What is changed; None leaves it as it was."""

    judge: str | None = None
    criteria: str | None = None
    mode: str | None = None
    pool: str | None = None

    def batch(self, name: str) -> str:
        """The id of the new batch; the same change gives the same id."""
        fields = json.dumps([self.judge, self.criteria, self.mode, self.pool])
        return f"{name}.rejudge-{ids.digest('rejudge', fields).hex()[:8]}"


@dataclass(frozen=True)
class RejudgeReport:
    """The outcomes of a rejudged batch, compared with the old ones."""

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
    """Share of outcomes with the same winner; None if fewer than 30 have both."""
    agreement_low: float
    agreement_high: float
    kappa: float | None
    """Cohen's kappa between the winners.

    None if fewer than 30 outcomes have both winners, or if chance explains the agreement.
    """
    labelled: int
    accepted_before: int
    accepted_after: int
    degraded_before: int
    degraded_after: int
    failed_before: int
    failed_after: int


def recorded_answers(fusion: History) -> tuple[RecordedAnswer, ...]:
    """The answers and failures that the members took part with, before any debate."""
    if fusion.prompt.recorded:
        return fusion.prompt.recorded
    if fusion.plan is None or fusion.outcome is None:
        return ()
    names = {a.member for a in fusion.outcome.answers if a.status in ("ok", "error")}
    candidates = _panel(
        [arrival.candidate for arrival in fusion.received], [round_ for round_, _ in fusion.rounds]
    )
    return tuple(
        _record(member, candidates[member.name])
        for member in fusion.plan.members
        if member.name in names and member.name in candidates
    )


def _record(member: PlannedMember, candidate: Candidate) -> RecordedAnswer:
    error_code = None
    if not candidate.ok:
        error_code = candidate.error.code if candidate.error else "no_answer"
    usage = candidate.usage
    return RecordedAnswer(
        member=member.name,
        model=member.model,
        family=member.family,
        weight=member.weight,
        content=candidate.content if candidate.ok else None,
        tool_calls=candidate.tool_calls if candidate.ok else (),
        error_code=error_code,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        latency_ms=max(candidate.latency_ms, 0.0),
        cost_usd=candidate.cost_usd,
    )


def _panel(candidates: Iterable[Candidate], rounds: Iterable[Round]) -> dict[str, Candidate]:
    """By member, its first answer, or its first failure if it has no answer.

    The panel may have been asked in several rounds; other rounds hold debates and verdicts.
    """
    panel_calls: set[tuple[int, str]] = set()
    for round_ in rounds:
        panel_calls |= {(round_.round, c.name) for c in round_.calls if c.kind == "answer"}
    panel: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (not c.ok, c.round, c.call)):
        is_panel_call = candidate.round == 0 or (candidate.round, candidate.call) in panel_calls
        if candidate.member is not None and is_panel_call:
            panel.setdefault(candidate.member, candidate)
    return panel


def submission(prompt: Prompt, answers: Sequence[RecordedAnswer], change: PolicyChange) -> str:
    """The submission, in JSON, of a prompt with its recorded answers and the change.

    Its residency stays as it was.
    """
    body: dict[str, Any] = {
        "custom_id": prompt.custom_id,
        "pool": change.pool or prompt.pool,
        "mode": change.mode or prompt.mode,
        "messages": [_turn(message) for message in excerpt(prompt.messages)],
        **prompt.sampling.model_dump(mode="json", exclude_defaults=True),
        "recorded": [answer.model_dump(mode="json", exclude_defaults=True) for answer in answers],
        "residency": prompt.residency,
    }
    if prompt.tools:
        body |= _tool_fields(prompt)
    if prompt.gold:
        body["gold"] = prompt.gold.model_dump(mode="json")
    if prompt.preset:
        body["preset"] = prompt.preset
    if judge := change.judge or prompt.judge:
        body["judge"] = judge
    if criteria := change.criteria or prompt.criteria:
        body["criteria"] = criteria
    return json.dumps(body)


def _tool_fields(prompt: Prompt) -> dict[str, Any]:
    tools = [tool.model_dump(mode="json") for tool in prompt.tools]
    return {
        "tools": [{"type": "function", "function": tool} for tool in tools],
        "tool_choice": prompt.tool_choice,
        "parallel_tool_calls": prompt.parallel_tool_calls,
    }


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


def compare(
    fusions: Sequence[History], new_outcomes: Mapping[str, Mapping[str, Any]]
) -> RejudgeReport:
    """Compare the old outcomes of a batch with the new ones.

    Args:
        fusions: the whole batch.
        new_outcomes: by custom_id, the outcomes of those that were rejudged, as the API shows
            them.
    """
    compared_fusions = [fusion for fusion in fusions if fusion.prompt.custom_id in new_outcomes]
    old = [fusion.outcome for fusion in compared_fusions]
    new = [new_outcomes[fusion.prompt.custom_id] for fusion in compared_fusions]
    golds = [fusion.prompt.gold for fusion in compared_fusions]
    winners = _winner_pairs(old, new)
    same = sum(before == after for before, after in winners)
    rate = wilson(same, len(winners))
    is_enough = len(winners) >= LEAST_N
    running = sum(fusion.outcome is None for fusion in fusions)
    return RejudgeReport(
        prompts=len(fusions),
        running=running,
        unanswered=len(fusions) - running - len(compared_fusions),
        rejudged=len(compared_fusions),
        winners=len(winners),
        winners_changed=len(winners) - same,
        agreement=rate.value if is_enough else None,
        agreement_low=rate.low,
        agreement_high=rate.high,
        kappa=_winner_kappa(winners) if is_enough else None,
        labelled=sum(gold is not None for gold in golds),
        accepted_before=sum(map(_is_old_accepted, old, golds)),
        accepted_after=sum(map(_is_new_accepted, new, golds)),
        degraded_before=sum(outcome is not None and outcome.is_degraded for outcome in old),
        degraded_after=sum(bool(outcome.get("is_degraded")) for outcome in new),
        failed_before=sum(
            outcome is not None and outcome.status not in ANSWERED for outcome in old
        ),
        failed_after=sum(outcome["status"] not in ANSWERED for outcome in new),
    )


def _winner_pairs(
    old: Sequence[Outcome | None], new: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The winners before and after, where both outcomes have one."""
    pairs = []
    for before, after in zip(old, new, strict=True):
        if before and before.winner and after.get("winner"):
            pairs.append((before.winner, str(after["winner"])))
    return pairs


def _winner_kappa(winners: Sequence[tuple[str, str]]) -> float | None:
    return kappa([before for before, _ in winners], [after for _, after in winners])


def _is_old_accepted(outcome: Outcome | None, gold: Gold | None) -> bool:
    if outcome is None or gold is None or outcome.status not in ANSWERED:
        return False
    return is_right(outcome.content, gold)


def _is_new_accepted(outcome: Mapping[str, Any], gold: Gold | None) -> bool:
    if gold is None or outcome["status"] not in ANSWERED:
        return False
    return is_right(outcome["content"], gold)


def rejudge(batch: str, change: PolicyChange, *, as_json: bool, window: int) -> None:
    """Fuse a batch's stored answers again, and print what came out differently."""
    if change == PolicyChange():
        fail("nothing would change", "give --judge, --criteria, --mode or --pool")
    into = change.batch(batch)
    if len(into) > MOST_BATCH_CHARS:
        fail(f"the name of the new batch, {into}, is longer than {MOST_BATCH_CHARS} characters")
    config = settings()
    fusions = asyncio.run(_read(config, batch))
    if not fusions:
        fail(
            f"there is no batch '{batch}'",
            'list them: fusewire query "select distinct batch_id from v_outcome"',
        )
    bodies = _submissions(fusions, change)
    if not bodies:
        fail(f"batch '{batch}' holds no answers to judge again", "wait until it has outcomes")
    _check(config, {change.pool or fusion.prompt.pool for fusion in fusions}, change)
    note(f"rejudging {len(bodies)} of {len(fusions)} prompts as batch {into}")

    async def main() -> dict[str, Mapping[str, Any]]:
        async with client(config) as api:
            return await fuse(api, into, bodies, window)

    report = compare(fusions, run(main()))
    _show(batch, into, report, as_json=as_json)


def _submissions(fusions: Iterable[History], change: PolicyChange) -> dict[str, str]:
    """By custom_id, the submissions of the prompts that have an outcome and an answer."""
    bodies = {}
    for fusion in fusions:
        answers = recorded_answers(fusion) if fusion.outcome else ()
        if any(answer.error_code is None for answer in answers):
            bodies[fusion.prompt.custom_id] = submission(fusion.prompt, answers, change)
    return bodies


def _check(config: Settings, pools: Iterable[str], change: PolicyChange) -> None:
    rules = pool_rules(config)
    try:
        for pool in pools:
            check(Submission(prompt="-", pool=pool, mode=change.mode, judge=change.judge), rules)
    except RefusedError as exc:
        mend = "give --pool, where the batch's own pool is gone" if exc.param == "pool" else ""
        fail(exc.message, mend)


def _show(batch: str, into: str, report: RejudgeReport, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"batch_id": batch, "rejudged_batch_id": into, **asdict(report)}))
        return
    bounds = f"{report.agreement_low:.1%} to {report.agreement_high:.1%}"
    agreement = "–" if report.agreement is None else f"{report.agreement:.1%}"
    left_out = f"{report.running} running, {report.unanswered} unanswered"
    winners = f"{report.winners} with a winner before and after"
    accepted = f"{report.accepted_before} → {report.accepted_after}"
    lines: list[tuple[str, object]] = [
        ("rejudged", f"{report.rejudged} of {report.prompts} ({left_out})"),
        ("winners changed", f"{report.winners_changed} of {winners}"),
        ("agreement", f"{agreement} (95 % interval {bounds})"),
        ("Cohen's kappa", "–" if report.kappa is None else f"{report.kappa:.3f}"),
        ("accepted", f"{accepted} of {report.labelled} labelled"),
        ("degraded", f"{report.degraded_before} → {report.degraded_after}"),
        ("failed", f"{report.failed_before} → {report.failed_after}"),
        ("batch", into),
    ]
    rows(("", batch), lines, RowFormat.table)


async def _read(config: Settings, batch: str) -> list[History]:
    """The fusions of a batch, in the order of their ids."""
    store = Store(config.database)
    try:
        await store.ping()
        await migrate.check(store)
        return await batch_histories(store, "default", batch)
    finally:
        await store.close()
