"""A fusion played through, message by message."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, ClassVar

import pytest

from fusewire.contracts import (
    CONTROL,
    MERGED,
    Call,
    Candidate,
    Outcome,
    Plan,
    PlannedJudge,
    Policy,
    Prompt,
    Round,
)
from fusewire.testing.factories import T0, make_candidate, make_plan, make_prompt
from fusewire_judge.judging.prompts import CONTROLS, clean
from fusewire_judge.model import Ask, Case, Decided, Decision, Draft, ReceivedCandidate, Wait
from fusewire_judge.outcome import build
from fusewire_judge.strategies.decide import decide

_SHOWN = re.compile(r"\[\[([0-9a-f]{8,32}) ([A-Z]{1,2})\]\]\n(.*?)\n\[\[/\1 \2\]\]", re.DOTALL)


def make_juror(model: str) -> PlannedJudge:
    return PlannedJudge(model=model, tier="remote", family=model)


@dataclass
class ScriptedFusion:
    """A fusion as the judge lives it: candidates come, it decides, its rounds are asked."""

    REASON: ClassVar[str] = "It alone is right about the city."
    ANALYSIS: ClassVar[dict[str, Any]] = {
        "consensus": ["There is a capital."],
        "contradictions": [],
        "partial_coverage": [],
        "unique_insights": [],
        "blind_spots": [],
    }

    prompt: Prompt = field(default_factory=make_prompt)
    plan: Plan = field(default_factory=make_plan)
    now: datetime = T0
    rounds: list[Round] = field(default_factory=list)
    received: dict[tuple[int, str], ReceivedCandidate] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        mode: str = "best-of",
        deadline_s: float = 60,
        prompt: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
        **plan: Any,
    ) -> "ScriptedFusion":
        """No line-up holds a control unless `policy` says so."""
        fields = {"mode": mode, "deadline_at": T0 + timedelta(seconds=deadline_s), **(prompt or {})}
        fusion_prompt = make_prompt(**fields)
        return cls(
            fusion_prompt,
            make_plan(
                fusion_prompt, policy=Policy(**{"control_share": 0.0, **(policy or {})}), **plan
            ),
        )

    @property
    def case(self) -> Case:
        return Case(self.prompt, self.plan, tuple(self.rounds), dict(self.received))

    # -- members --------------------------------------------------------------------------

    def hear(self, candidate: Candidate) -> None:
        """Commit a candidate, unless there is one already."""
        key = (candidate.round, candidate.call)
        self.received.setdefault(key, ReceivedCandidate(candidate, self.now, len(self.rounds)))

    def says(self, **answers: str) -> "ScriptedFusion":
        """Members answer their first call; a text that begins with `!` is an error code."""
        for call, text in answers.items():
            self.say(call, text)
        return self

    def say(
        self, call: str, text: str | None, round_: int = 0, **overrides: Any
    ) -> "ScriptedFusion":
        """Answer one call: `a`, its second sample `a=2`, or its hedge `a=h`.

        `round_` is the round that asked for it.
        """
        self.hear(self.make_reply(round_, call, text, **overrides))
        return self

    def make_reply(self, round_: int, call: str, text: str | None, **overrides: Any) -> Candidate:
        member_models = {m.name: m.model for m in self.plan.members}
        round_calls = (r.calls for r in self.rounds if r.round == round_)
        call_models = {c.name: c.model for c in chain.from_iterable(round_calls)}
        member = call.partition("=")[0]
        fields = {
            "round": round_,
            "member": member if member in member_models else None,
            "model": call_models.get(call) or member_models[member],
            **overrides,
        }
        if text and text.startswith("!"):
            return make_candidate(call=call, fails=text[1:], **fields)
        return make_candidate(text, call, **fields)

    # -- what it does ---------------------------------------------------------------------

    def decide(self) -> Decision:
        return decide(self.case, self.now)

    def asks(self) -> dict[str, str]:
        """It must ask now; returns the last message of each call. The round is then asked."""
        decision = self.decide()
        assert isinstance(decision, Ask), decision
        assert decision.number == len(self.rounds) + 1
        plan = self.plan
        is_panel = decision.calls[0].kind == "answer"
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
                deadline_at=plan.panel_deadline_at if is_panel else plan.deadline_at,
            )
        )
        return {call.name: call.messages[-1].content for call in decision.calls}

    def ends(self) -> Draft:
        """It must be decided now."""
        return self.end().draft

    def end(self) -> Decided:
        decision = self.decide()
        assert isinstance(decision, Decided), decision
        return decision

    def closed_by(self) -> str | None:
        panel = self.end().panel
        assert panel is not None
        return panel.closed_by

    def outcome(self, judged_s: float | None = None) -> Outcome:
        since = None if judged_s is None else T0 + timedelta(seconds=judged_s)
        return build(self.case, self.end(), self.now, judged_since=since)

    def waits(self) -> float:
        """It must wait now; returns until which second."""
        decision = self.decide()
        assert isinstance(decision, Wait), decision
        return (decision.until - T0).total_seconds()

    def later(self, seconds: float) -> "ScriptedFusion":
        """It is so many seconds after the prompt came."""
        self.now = T0 + timedelta(seconds=seconds)
        return self

    # -- what comes back of the last round ------------------------------------------------

    def replies(self, **texts: str) -> "ScriptedFusion":
        """By call; `verdict_1_1` stands for `verdict-1-1`."""
        for call, text in texts.items():
            self.say(call.replace("_", "-"), text, len(self.rounds))
        return self

    def verdict_calls(self, judge: str | None = None) -> list[Call]:
        return [
            c for c in self.rounds[-1].calls if c.kind == "verdict" and judge in (None, c.model)
        ]

    def judge_says(self, *who: str, judge: str | None = None) -> "ScriptedFusion":
        """Each verdict call of the last round (of one judge) names this member, wherever it stands.

        Several members are named in turn.
        """
        calls = self.verdict_calls(judge)
        for place, call in enumerate(calls):
            self.say(
                call.name, self.verdict(self.label(call, who[place % len(who)])), len(self.rounds)
            )
        return self

    def judge_always_first(self) -> "ScriptedFusion":
        for call in self.verdict_calls():
            self.say(call.name, self.verdict(self.shown_texts(call)[0][0]), len(self.rounds))
        return self

    def judge_writes(self, *texts: str, judge: str | None = None) -> "ScriptedFusion":
        """Verdict calls of the last round are answered with these texts, in turn."""
        for place, call in enumerate(self.verdict_calls(judge)):
            self.say(call.name, texts[place % len(texts)], len(self.rounds))
        return self

    def check_calls(self, judge: str | None = None) -> list[Call]:
        return [c for c in self.rounds[-1].calls if c.kind == "check" and judge in (None, c.model)]

    def checks(self, passing: str, judge: str | None = None) -> "ScriptedFusion":
        """Each check of the last round (of one judge) passes the answers of these members."""
        for call in self.check_calls(judge):
            (who,) = self.order(call)
            self.say(call.name, self.check(passes=who in passing), len(self.rounds))
        return self

    def check(self, *, passes: bool) -> str:
        return json.dumps({"reason": self.REASON, "passes": passes})

    def analyses(self, text: str | None = None) -> "ScriptedFusion":
        (call,) = [c for c in self.rounds[-1].calls if c.kind == "analysis"]
        return self.say(
            call.name, json.dumps(self.ANALYSIS) if text is None else text, len(self.rounds)
        )

    def rebuts(self, **turns: tuple[str, Any] | str) -> "ScriptedFusion":
        """Members reply in a debate: (error, answer), or a raw text."""
        for call, turn in turns.items():
            text = (
                turn if isinstance(turn, str) else json.dumps({"error": turn[0], "answer": turn[1]})
            )
            self.say(call, text, len(self.rounds))
        return self

    def verdict(self, label: str) -> str:
        return json.dumps({"reason": self.REASON, "winner": label})

    @staticmethod
    def shown_texts(call: Call) -> list[tuple[str, str]]:
        """Labels and texts, in the order in which a call shows them."""
        return [(label, text) for _, label, text in _SHOWN.findall(call.messages[-1].content)]

    def label(self, call: Call, who: str) -> str:
        """Behind which label a call shows a member (or the control, or the merge)."""
        labels = {text: label for label, text in self.shown_texts(call)}
        return next(labels[text] for text in self._texts(who) if text in labels)

    def order(self, call: Call) -> list[str]:
        """Members in the order in which a call shows them."""
        return [self._author(text) for _, text in self.shown_texts(call)]

    def _author(self, text: str) -> str:
        names = [*(m.name for m in self.plan.members), CONTROL, MERGED]
        return next(name for name in names if text in self._texts(name))

    def _texts(self, who: str) -> list[str]:
        """What a member (or the control, or the merge) has said, the earliest first."""
        if who == CONTROL:
            return list(chain.from_iterable(CONTROLS.values()))
        author = "write" if who == MERGED else who
        texts = []
        for (_, call), arrival in sorted(self.received.items()):
            text = arrival.candidate.content or ""
            if call.partition("=")[0] == author:
                texts += [clean(text), clean(text.strip()), _answer_in(text)]
        return texts


def _answer_in(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return str(value["answer"]) if isinstance(value, dict) and "answer" in value else text


@pytest.fixture(scope="session")
def begin() -> Callable[..., ScriptedFusion]:
    """Begins a fusion: `begin(mode, deadline_s, prompt={…}, policy={…}, **plan)`."""
    return ScriptedFusion.of


@pytest.fixture(scope="session")
def juror() -> Callable[[str], PlannedJudge]:
    return make_juror
