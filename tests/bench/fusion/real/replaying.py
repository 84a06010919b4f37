"""Fuse recorded answers by the judge's own code: `decide`, outcomes, learned weights. Pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from fusewire import ids
from fusewire.contracts import (
    Call,
    CallFailure,
    Candidate,
    Outcome,
    Plan,
    PlannedJudge,
    PlannedMember,
    Prompt,
    Sampling,
)
from fusewire.testing.factories import T0
from fusewire_judge.learning.agreement_model import NO_WEIGHTS
from fusewire_judge.learning.statistics import StoredAnswer, StoredHistory, learn_statistics
from fusewire_judge.model import Ask, Case, Decided, ReceivedCandidate
from fusewire_judge.outcome import build
from fusewire_judge.panel.recorded import candidates
from fusewire_judge.strategies.decide import decide
from fusewire_judge.turn import build_round

from .dataset import Question

JUDGE, POOL = "judge", "real"
ByKind = Mapping[str, Mapping[str, float]]
"""Learned weights, by kind of answer and member."""


def fuse(question: Question, weights: ByKind, *, is_judged: bool = False) -> Outcome:
    """Fuse the answers to a question, all of which have come.

    Args:
        question: with its recorded answers.
        weights: what was learned; a kind or a member that is missing counts 1.
        is_judged: whether a judge by margin is asked, with the log probabilities recorded.
    """
    prompt, plan = _contracts(question, weights, is_judged=is_judged)
    arrivals = {
        (0, candidate.call): ReceivedCandidate(candidate, T0, 0)
        for candidate in candidates(prompt, plan, T0)
    }
    case = Case(prompt, plan, (), arrivals)
    while True:
        decision = decide(case, T0)
        if isinstance(decision, Decided):
            return build(case, decision, T0, judged_since=None)
        # With all answers there it never waits.
        assert isinstance(decision, Ask)
        case = _with_round(case, decision, question)


def _contracts(question: Question, weights: ByKind, *, is_judged: bool) -> tuple[Prompt, Plan]:
    common: dict[str, Any] = {
        "fusion_id": ids.fusion_id("default", "real", question.custom_id),
        "tenant": "default",
        "pool": POOL,
        "mode": "best-of",
        "residency": "edge-only",
        "priority": "normal",
        "seed": ids.seed("real", question.custom_id),
        "submitted_at": T0,
        "deadline_at": T0 + timedelta(hours=1),
    }
    prompt = Prompt(
        **common,
        custom_id=question.custom_id,
        messages=question.messages,
        sampling=Sampling(response_schema=question.schema),
        recorded=question.answers,
        gold=question.gold,
    )
    judge = PlannedJudge(model=JUDGE, tier="edge", family=JUDGE, by_margin=True, sees_own=True)
    plan = Plan(
        **common,
        members=tuple(_member(answer.member, weights) for answer in question.answers),
        judge=judge if is_judged else None,
        quorum=1.0,
        debate_rounds=1,
        planned_at=T0,
        panel_deadline_at=T0 + timedelta(minutes=30),
        config_hash="0",
    )
    return prompt, plan


def _member(name: str, weights: ByKind) -> PlannedMember:
    learned = {kind: by_member[name] for kind, by_member in weights.items() if name in by_member}
    return PlannedMember(
        name=name, model=name, tier="edge", family=name, weight=1.0, learned=learned
    )


def _with_round(case: Case, ask: Ask, question: Question) -> Case:
    """The case with what the judge said to its next round."""
    replies = {
        (ask.number, call.name): ReceivedCandidate(
            _reply(case, ask.number, call, question), T0, ask.number
        )
        for call in ask.calls
    }
    rounds = (*case.rounds, build_round(case, ask, "replay"))
    return Case(case.prompt, case.plan, rounds, {**case.received, **replies})


def _reply(case: Case, number: int, call: Call, question: Question) -> Candidate:
    """The judge's log probabilities as recorded; a failure if one of them was not."""
    known = [question.logprobs.get(text) for text in call.choices]
    logprobs = tuple(value for value in known if value is not None)
    failure = None
    if not known or len(logprobs) < len(known):
        failure = CallFailure(code="server_error", message="not recorded", retryable=False)
    return Candidate(
        task_id=ids.task_id(case.plan.fusion_id, number, call.name),
        fusion_id=case.plan.fusion_id,
        round=number,
        call=call.name,
        model=call.model,
        tier="edge",
        provider="recorded",
        content=None if failure else "",
        choice_logprobs=() if failure else logprobs,
        error=failure,
        finish_reason=None if failure else "stop",
        started_at=T0,
        finished_at=T0,
    )


def learn(
    outcomes: Iterable[tuple[Question, Outcome]],
    *,
    labels: bool,
    configured_weights: Mapping[str, float] = NO_WEIGHTS,
) -> ByKind:
    """The weights that the judge would learn from outcomes that it stored.

    Args:
        outcomes: of earlier prompts.
        labels: whether it was told who was right.
        configured_weights: by member. What is returned is already multiplied by them.
    """
    stored: list[StoredAnswer] = []
    for question, outcome in outcomes:
        stored += _stored_answers(question, outcome, labels=labels)
    pool_weights = {POOL: configured_weights}
    weights = learn_statistics(StoredHistory(stored, configured_weights=pool_weights)).weights
    return {
        kind: {m: factor * configured_weights.get(m, 1.0) for m, factor in by_member.items()}
        for (_, kind), by_member in weights.items()
    }


def _stored_answers(
    question: Question, outcome: Outcome, *, labels: bool
) -> Iterator[StoredAnswer]:
    """What is stored of an outcome for learning; nothing if nobody answered."""
    for answer in outcome.answers if outcome.answer_kind else ():
        yield StoredAnswer(
            pool=outcome.pool,
            fusion_id=outcome.fusion_id,
            kind=outcome.answer_kind or "",
            member=answer.member,
            is_right=question.is_right(answer.member) if labels else None,
            vote_group=answer.vote_group,
            latency_ms=None,
        )


def is_fusion_right(question: Question, outcome: Outcome) -> bool:
    """Whether the answer that was chosen is right."""
    return outcome.winner is not None and question.is_right(outcome.winner)


def fold_of(question: Question, folds: int, seed: str) -> int:
    """The outer fold of a question: the same whatever other questions there are."""
    digest = hashlib.sha256(f"{seed}/{question.custom_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % folds


def best_member(questions: Sequence[Question]) -> str:
    """The member that is right most often; of equals the first by name."""
    members = sorted({answer.member for q in questions for answer in q.answers})
    return max(members, key=lambda member: sum(q.is_right(member) for q in questions))
