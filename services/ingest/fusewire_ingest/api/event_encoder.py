"""Encodes what happens in a fusion as server-sent events, each at most once."""

from collections.abc import Iterator

from fusewire import replies
from fusewire.contracts import Candidate, Plan, PlannedJudge, Round
from fusewire.contracts.round import CallKind
from fusewire.store.history import History
from fusewire_ingest.api.stream import data

MOST_CHARS = 4_000
"""Characters of an answer that an event holds."""


class EventEncoder:
    """Encodes events of one fusion, and knows which were encoded."""

    def __init__(self, fusion_id: str) -> None:
        self._fusion_id = fusion_id
        self._rounds: set[int] = set()
        """Rounds of which the calls are known; 0 is the plan."""
        self._calls: dict[tuple[int, str], tuple[CallKind, str]] = {}
        """Kind and model of each known call without a candidate so far, by round and name."""

    def has_round(self, number: int) -> bool:
        """Whether the calls of a round are known."""
        return number in self._rounds

    def history(self, history: History) -> Iterator[bytes]:
        """Encode what is stored, in its order."""
        if history.plan is not None:
            yield from self.plan(history.plan)
        rounds = [round_ for round_, _ in history.rounds]
        for row in history.received:
            before = max(row.after_rounds, row.candidate.round)
            while rounds and rounds[0].round <= before:
                yield from self._round(rounds.pop(0))
            yield from self.candidate(row.candidate)
        for round_ in rounds:
            yield from self._round(round_)

    def plan(self, plan: Plan) -> Iterator[bytes]:
        """Encode the plan."""
        if self.has_round(0):
            return
        self._rounds.add(0)
        for member in plan.members:
            # The others are called in a round.
            if member.wave == 0:
                for call in member.calls:
                    self._calls[0, call] = "answer", member.model
        yield data(self._plan_event(plan), "plan")

    def candidate(self, candidate: Candidate) -> Iterator[bytes]:
        """Encode a candidate; nothing if nobody has asked for it, which the judge refuses."""
        key = candidate.round, candidate.call
        kind, model = self._calls.get(key, (None, None))
        if kind is None or model != candidate.model:
            return
        del self._calls[key]
        content = candidate.content
        event: replies.events.CandidateEvent = {
            "id": self._fusion_id,
            "round": candidate.round,
            "call": candidate.call,
            "kind": kind,
            "member": candidate.member,
            "model": candidate.model,
            "tier": candidate.tier,
            "ok": candidate.ok,
            "error_code": candidate.error.code if candidate.error else None,
            "latency_ms": round(candidate.latency_ms, 1),
            "cost_usd": candidate.cost_usd,
            "content": content and content[:MOST_CHARS],
            "is_cut": content is not None and len(content) > MOST_CHARS,
            "tool_calls": [call.name for call in candidate.tool_calls],
        }
        yield data(event, "candidate")

    def _round(self, round_: Round) -> Iterator[bytes]:
        if self.has_round(round_.round):
            return
        self._rounds.add(round_.round)
        calls = {(round_.round, call.name): (call.kind, call.model) for call in round_.calls}
        self._calls.update(calls)
        event: replies.events.RoundEvent = {
            "id": self._fusion_id,
            "round": round_.round,
            "calls": [
                {"call": call.name, "kind": call.kind, "model": call.model, "member": call.member}
                for call in round_.calls
            ],
            "deadline_at": round_.deadline_at.isoformat(),
        }
        yield data(event, "round")

    def _plan_event(self, plan: Plan) -> replies.events.PlanEvent:
        return {
            "id": self._fusion_id,
            "pool": plan.pool,
            "mode": plan.mode,
            "members": [
                {
                    "name": member.name,
                    "model": member.model,
                    "tier": member.tier,
                    "samples": member.samples,
                    "wave": member.wave,
                }
                for member in plan.members
            ],
            "judge": _judge(plan.judge) if plan.judge else None,
            "jury": [_judge(judge) for judge in plan.jury],
            "excluded": [
                {"name": member.name, "reason": member.reason} for member in plan.excluded
            ],
            "planned_at": plan.planned_at.isoformat(),
            "panel_deadline_at": plan.panel_deadline_at.isoformat(),
            "deadline_at": plan.deadline_at.isoformat(),
        }


def _judge(judge: PlannedJudge) -> replies.events.PlanJudge:
    return {"model": judge.model, "tier": judge.tier}
