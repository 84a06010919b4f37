"""One fusion lived through on a virtual clock: no bus, no model, no waiting."""

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fusewire import ids
from fusewire.contracts import (
    Candidate,
    Message,
    Mode,
    Plan,
    PlannedJudge,
    PlannedMember,
    Policy,
    Prompt,
    Round,
    Sampling,
    Tier,
)
from fusewire.testing.factories import T0
from fusewire_judge.model import Ask, Case, Decided, Draft, Panel, ReceivedCandidate
from fusewire_judge.strategies.decide import decide

from .minds import ModelPool
from .world import Question

DEADLINE_S = 600.0
PANEL_S = 450.0


@dataclass(frozen=True)
class PoolSettings:
    """A pool, and how it fuses."""

    mode: Mode
    members: tuple[PlannedMember, ...]
    jury: tuple[str, ...] = ("judge",)
    policy: Policy = field(default_factory=Policy)
    quorum: float = 0.67
    debate_rounds: int = 1


def make_member(name: str, tier: Tier = "remote", **more: Any) -> PlannedMember:
    """A member of weight 1, of a family of its own."""
    fields: dict[str, Any] = {
        "name": name,
        "model": f"m-{name}",
        "tier": tier,
        "family": name,
        "weight": 1.0,
    }
    return PlannedMember(**{**fields, **more})


@dataclass
class FusionResult:
    """What came of it."""

    draft: Draft
    panel: Panel | None
    panel_s: float
    """From the plan to the panel's end."""
    total_s: float
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls made, by kind and tier; hedges under the kind `hedge`."""


def play(question: Question, setup: PoolSettings, cast: ModelPool) -> FusionResult:
    """Let candidates come at their times until the judge has decided.

    Args:
        question: the prompt.
        setup: the pool.
        cast: who answers.
    """
    return _FusionLoop(question, setup, cast).run()


class _FusionLoop:
    def __init__(self, question: Question, setup: PoolSettings, cast: ModelPool) -> None:
        self.question, self.setup, self.cast = question, setup, cast
        self.prompt, self.plan = contracts(question, setup)
        self.tiers: dict[str, Tier] = {m.name: m.tier for m in setup.members}
        self.rounds: list[Round] = []
        self.arrivals: dict[tuple[int, str], ReceivedCandidate] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.coming: list[tuple[float, bool, int, Candidate | None]] = []
        self.sequence = itertools.count()
        self.panel_s: float | None = None
        self.now_s = 0.0

    def run(self) -> FusionResult:
        for member in self.setup.members:
            if member.wave == 0:
                self.call_member(member)
        while True:
            at_s, _, _, candidate = heapq.heappop(self.coming)
            self.now_s = max(at_s, self.now_s)
            if candidate is not None:
                self.receive(candidate)
            result = self.decide()
            if result:
                return result

    def call_member(self, member: PlannedMember) -> None:
        world_member = ModelPool.member(self.question, member.name)
        for sample, name in enumerate(member.calls, start=1):
            text = self.question.answer(world_member, sample)
            self.send(0, name, "answer", member.name, member.model, text)

    def receive(self, candidate: Candidate) -> None:
        at = T0 + timedelta(seconds=self.now_s)
        arrival = ReceivedCandidate(candidate, at, len(self.rounds))
        self.arrivals.setdefault((candidate.round, candidate.call), arrival)

    def decide(self) -> FusionResult | None:
        now = T0 + timedelta(seconds=self.now_s)
        case = Case(self.prompt, self.plan, tuple(self.rounds), self.arrivals)
        decision = decide(case, now)
        if isinstance(decision, Decided):
            panel_s = self.now_s if self.panel_s is None else self.panel_s
            return FusionResult(decision.draft, decision.panel, panel_s, self.now_s, self.calls)
        if isinstance(decision, Ask):
            self.ask(decision)
            return self.decide()
        if decision.until <= now:
            raise RuntimeError("it waits for what is past")
        self.push((decision.until - T0).total_seconds(), None)
        return None

    def ask(self, request: Ask) -> None:
        plan = self.plan
        if self.panel_s is None and request.calls[0].kind != "answer":
            self.panel_s = self.now_s
        self.rounds.append(
            Round(
                fusion_id=plan.fusion_id,
                round=request.number,
                tenant=plan.tenant,
                pool=plan.pool,
                calls=request.calls,
                residency=plan.residency,
                priority=plan.priority,
                seed=plan.seed,
                deadline_at=request.until,
            )
        )
        for call in request.calls:
            text = self.cast.reply(call, self.question)
            self.send(request.number, call.name, call.kind, call.member, call.model, text)

    def send(
        self, round_: int, name: str, kind: str, member: str | None, model: str, text: str
    ) -> None:
        """A call is made; its candidate comes when its latency has passed."""
        tier = self.tiers.get(member or "", "remote")
        self.calls["hedge" if name.endswith("=h") else kind, tier] += 1
        took = self.cast.latency_s(f"{round_}/{name}", member, self.question)
        self.push(self.now_s + took, self.candidate(round_, name, member, model, tier, text, took))

    def candidate(
        self,
        round_: int,
        name: str,
        member: str | None,
        model: str,
        tier: Tier,
        text: str,
        took: float,
    ) -> Candidate:
        started_at = T0 + timedelta(seconds=self.now_s)
        return Candidate(
            task_id=ids.task_id(self.plan.fusion_id, round_, name),
            fusion_id=self.plan.fusion_id,
            round=round_,
            call=name,
            member=member,
            model=model,
            tier=tier,
            provider="simulated",
            content=text,
            finish_reason="stop",
            started_at=started_at,
            finished_at=started_at + timedelta(seconds=took),
        )

    def push(self, at_s: float, candidate: Candidate | None) -> None:
        # Of what happens at one instant, timers come last.
        heapq.heappush(self.coming, (at_s, candidate is None, next(self.sequence), candidate))


def contracts(question: Question, setup: PoolSettings) -> tuple[Prompt, Plan]:
    """The prompt and its plan."""
    text = Message(role="user", content=question.text)
    common: dict[str, Any] = {
        "fusion_id": ids.fusion_id("default", question.world.seed, str(question.number)),
        "tenant": "default",
        "pool": "default",
        "mode": setup.mode,
        "residency": "any",
        "priority": "normal",
        "seed": ids.seed(question.world.seed, str(question.number)),
        "submitted_at": T0,
        "deadline_at": T0 + timedelta(seconds=DEADLINE_S),
    }
    prompt = Prompt(**common, custom_id=str(question.number), messages=(text,), sampling=Sampling())
    judges = [PlannedJudge(model=name, tier="remote", family=name) for name in setup.jury]
    plan = Plan(
        **common,
        members=setup.members,
        judge=judges[0] if judges else None,
        jury=tuple(judges[1:] and judges),
        policy=setup.policy,
        quorum=setup.quorum,
        debate_rounds=setup.debate_rounds,
        planned_at=T0,
        panel_deadline_at=T0 + timedelta(seconds=PANEL_S),
        config_hash="0",
    )
    return prompt, plan


def with_weights(
    members: Sequence[PlannedMember], kind: str, weights: Mapping[str, float]
) -> tuple[PlannedMember, ...]:
    """The members with learned weights for one kind of answer."""
    return tuple(m.model_copy(update={"learned": {kind: weights[m.name]}}) for m in members)
