"""A fusion played through, message by message."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest

from fusewire.contracts import Candidate, Plan, Prompt, Round, Sampling
from fusewire.testing.factories import JUDGE, T0, make_candidate, make_plan, make_prompt
from fusewire_judge.fusion.case import Ask, Case, Decided, Decision, Draft, Heard, Wait
from fusewire_judge.fusion.decision import decide


@dataclass
class Play:
    """A fusion as the judge lives it: candidates come, it decides, its rounds are asked."""

    REASON: ClassVar[str] = "It alone is right about the city."

    prompt: Prompt = field(default_factory=make_prompt)
    plan: Plan = field(default_factory=make_plan)
    now: datetime = T0
    rounds: list[Round] = field(default_factory=list)
    heard: dict[tuple[int, str], Heard] = field(default_factory=dict)

    @classmethod
    def of(cls, mode: str = "best-of", sampling: Sampling | None = None, deadline_s: float = 60, **plan: Any) -> "Play":
        prompt = make_prompt(mode=mode, sampling=sampling or Sampling(), deadline_at=T0 + timedelta(seconds=deadline_s))
        return cls(prompt, make_plan(prompt, **plan))

    @property
    def case(self) -> Case:
        return Case(self.prompt, self.plan, tuple(self.rounds), dict(self.heard))

    def hear(self, candidate: Candidate) -> None:
        """Commit a candidate, unless there is one already."""
        key = (candidate.round, candidate.call)
        self.heard.setdefault(key, Heard(candidate, self.now, len(self.rounds)))

    def says(self, **answers: str) -> "Play":
        """Members answer; a text that begins with `!` is an error code."""
        for call, text in answers.items():
            self.hear(self.spoken(0, call, text))
        return self

    def spoken(self, round_: int, call: str, text: str, **overrides: Any) -> Candidate:
        planned = {m.name: m.model for m in self.plan.members}
        given = {"round": round_, "model": planned.get(call, JUDGE.model), **overrides}
        if call not in planned:
            given["member"] = None
        if text.startswith("!"):
            return make_candidate(call=call, fails=text[1:], **given)
        return make_candidate(text, call, **given)

    def decide(self) -> Decision:
        return decide(self.case, self.now)

    def asks(self) -> dict[str, str]:
        """It must ask now; returns the last message of each call. The round is then asked."""
        decision = self.decide()
        assert isinstance(decision, Ask), decision
        assert decision.number == len(self.rounds) + 1
        plan = self.plan
        self.rounds.append(
            Round(
                fusion_id=plan.fusion_id,
                round=decision.number,
                tenant=plan.tenant,
                pool=plan.pool,
                calls=decision.calls,
                residency=plan.residency,
                priority=plan.priority,
                seed=plan.seed,
                deadline_at=plan.deadline_at,
            )
        )
        return {call.name: call.messages[-1].content for call in decision.calls}

    def replies(self, **texts: str) -> "Play":
        """What comes back of the last round; the call `verdict_again` stands for `verdict-again`."""
        for call, text in texts.items():
            self.hear(self.spoken(len(self.rounds), call.replace("_", "-"), text))
        return self

    def ends(self) -> Draft:
        """It must be decided now."""
        decision = self.decide()
        assert isinstance(decision, Decided), decision
        return decision.draft

    def waits(self) -> float:
        """It must wait now; returns until which second."""
        decision = self.decide()
        assert isinstance(decision, Wait), decision
        return (decision.until - T0).total_seconds()

    def later(self, seconds: float) -> "Play":
        self.now = T0 + timedelta(seconds=seconds)
        return self

    def label_of(self, member: str) -> str:
        """The letter behind which the judge sees a member in the last round."""
        shown = self.rounds[-1].calls[0].messages[-1].content
        for letter in "ABC":
            _, _, rest = shown.partition(f" {letter}]]\n")
            if rest.startswith(self.heard[0, member].candidate.content or "?"):
                return letter
        raise AssertionError("not shown")

    def verdict_for(self, member: str) -> str:
        return json.dumps({"reason": self.REASON, "winner": self.label_of(member)})


@pytest.fixture(scope="session")
def begin() -> Callable[..., Play]:
    """Begins a fusion: `play(mode, sampling, deadline_s, **plan)`."""
    return Play.of
