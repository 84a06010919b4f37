"""How far a fusion is: the events of the API, put together to what the page Ask shows. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Fields = Mapping[str, Any]
CardState = Literal["waiting", "ok", "error", "missing", "unasked", "left out"]

MOST_CHARS = 4_000
"""Characters of a member's answer that the page shows."""
MOST_OUTCOME_CHARS = 20_000
"""Characters of the fused answer that the page shows."""
_PASSING = ("draining", "unavailable")
"""Codes of errors after which the events may come again."""
_OPEN_CALLS = {
    "answer": "Further members are asked",
    "verdict": "The judge compares the answers",
    "analysis": "The judge analyses the answers",
    "write": "The judge writes the answer",
    "debate": "The members debate",
    "check": "The judge checks each answer",
}
"""What happens while calls of a kind are open."""
_ENDINGS = {
    "fused": "One answer was written from several.",
    "selected": "The judge has chosen an answer.",
    "voted": "The members' votes have decided.",
    "single": "Only one member has answered.",
    "failed": "No member has answered.",
    "expired": "The deadline has passed without an answer.",
    "cancelled": "It was cancelled.",
}


@dataclass
class Card:
    """A member of the pool, and its answer."""

    name: str
    model: str
    tier: str | None = None
    state: CardState = "waiting"
    note: str | None = None
    """Why it has not answered, or is not asked yet."""
    text: str | None = None
    is_cut: bool = False
    tools: tuple[str, ...] = ()
    """Names of the functions that it calls."""
    samples: int = 1
    n_samples: int = 0
    """How many of its samples have come."""
    latency_ms: float | None = None
    cost_usd: float | None = None
    is_winner: bool = False


@dataclass
class RoundCall:
    """A call that the judge has asked for."""

    round: int
    call: str
    kind: str
    model: str
    member: str | None
    state: Literal["waiting", "ok", "error"] = "waiting"
    note: str | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None


@dataclass
class FusionProgress:
    """What is known of a fusion so far."""

    cards: list[Card]
    """In the order of the pool. Before the plan is known, those that the configuration names."""
    calls: list[RoundCall] = field(default_factory=list)
    """Calls of the judge and of debates, in the order in which they were asked for."""
    has_plan: bool = False
    judges: tuple[str, ...] = ()
    """Their models."""
    without_judge: str | None = None
    """Why a judge of the pool is left out."""
    outcome: Fields | None = None
    interruption: str | None = None
    """Why the events have stopped before the outcome; None while they come."""
    can_resume: bool = True
    """Whether they may come again after that."""

    @classmethod
    def of_pool(cls, members: Iterable[tuple[str, str]]) -> "FusionProgress":
        """The beginning, with the names and models of the pool's members."""
        return cls([Card(name, model) for name, model in members])

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.outcome is not None or not self.can_resume

    @property
    def layout(self) -> tuple[str, ...]:
        """Which cards there are."""
        return tuple(card.name for card in self.cards)

    @property
    def headline(self) -> str:
        """What happens now, in one sentence.

        >>> FusionProgress.of_pool([("a", "a")]).headline
        'Waiting for the plan.'
        """
        if self.outcome is not None:
            return _ENDINGS.get(self.outcome["status"], "It has ended.")
        open_calls = [call for call in self.calls if call.state == "waiting"]
        if open_calls:
            n_done = sum(call.round == open_calls[0].round for call in self.calls) - len(open_calls)
            what = _OPEN_CALLS.get(open_calls[0].kind, "The judge works")
            return f"{what}: {n_done} of {n_done + len(open_calls)} calls have ended."
        if not self.has_plan:
            return "Waiting for the plan."
        asked_cards = [card for card in self.cards if card.state not in ("left out", "unasked")]
        n_ended = sum(card.state != "waiting" for card in asked_cards)
        if n_ended < len(asked_cards):
            return f"{n_ended} of {len(asked_cards)} members have answered."
        return "All members have answered; the judge decides."

    @property
    def answer(self) -> str | None:
        """The fused answer, as much of it as the page shows."""
        content = self.outcome.get("content") if self.outcome else None
        return content[:MOST_OUTCOME_CHARS] if content else None

    @property
    def is_answer_cut(self) -> bool:
        """Whether there is more of it."""
        content = self.outcome.get("content") if self.outcome else None
        return len(content or "") > MOST_OUTCOME_CHARS

    def apply(self, name: str, event: Fields) -> None:
        """Take in an event of `GET /v1/fusions/{id}/events`; unknown ones change nothing."""
        match name:
            case "plan":
                self._plan(event)
            case "round":
                self._round(event)
            case "candidate":
                self._candidate(event)
            case "outcome":
                self._end(event)
            case "error":
                self.interrupt(event["message"], can_resume=event["code"] in _PASSING)

    def interrupt(self, message: str, *, can_resume: bool) -> None:
        """Tell that the events have stopped."""
        self.interruption, self.can_resume = message, can_resume

    def _plan(self, plan: Fields) -> None:
        self.has_plan = True
        judges = plan["jury"] or ([plan["judge"]] if plan["judge"] else [])
        self.judges = tuple(judge["model"] for judge in judges)
        cards = _member_cards(plan["members"])
        for out in plan["excluded"]:
            if out["name"] == "judge" or out["name"].startswith("juror-"):
                self.without_judge = out["reason"]
            else:
                cards.append(Card(out["name"], out["name"], state="left out", note=out["reason"]))
        # No card moves from where the page has shown it.
        places = {name: place for place, name in enumerate(self.layout)}
        self.cards = sorted(cards, key=lambda card: places.get(card.name, len(places)))

    def _card(self, name: str | None) -> Card | None:
        return next((card for card in self.cards if card.name == name), None)

    def _round(self, round_: Fields) -> None:
        for call in round_["calls"]:
            card = self._card(call["member"])
            if call["kind"] == "answer" and card is not None:
                # A member that was not asked before, or is asked once more.
                if card.state == "unasked":
                    card.state, card.note = "waiting", None
                continue
            self.calls.append(
                RoundCall(
                    round_["round"], call["call"], call["kind"], call["model"], call["member"]
                )
            )

    def _candidate(self, candidate: Fields) -> None:
        key = candidate["round"], candidate["call"]
        for call in self.calls:
            if (call.round, call.call) == key:
                call.state = "ok" if candidate["ok"] else "error"
                call.note = candidate["error_code"]
                call.latency_ms, call.cost_usd = candidate["latency_ms"], candidate["cost_usd"]
                return
        card = self._card(candidate["member"])
        if card is not None:
            _answer(card, candidate)

    def _end(self, fusion: Fields) -> None:
        self.outcome = fusion
        self.calls = [call for call in self.calls if call.state != "waiting"]
        for answer in fusion.get("answers", ()):
            card = self._card(answer["member"])
            if card is None:
                card = Card(answer["member"], answer["model"], answer["tier"])
                self.cards.append(card)
            _finish(card, answer)
        for card in self.cards:
            if card.state == "waiting":
                card.state = "missing"


def _answer(card: Card, candidate: Fields) -> None:
    """Put a member's answer on its card; of several samples, the first that is one."""
    card.n_samples += 1
    if card.state == "ok":
        return
    card.state = "ok" if candidate["ok"] else "error"
    card.note = candidate["error_code"]
    card.text, card.is_cut = candidate["content"], candidate["is_cut"]
    card.tools = tuple(candidate["tool_calls"])
    card.tier = candidate["tier"]
    card.latency_ms, card.cost_usd = candidate["latency_ms"], candidate["cost_usd"]


def _finish(card: Card, answer: Fields) -> None:
    """Put what the outcome says of a member on its card."""
    card.state, card.is_winner = answer["status"], answer["is_winner"]
    card.note = answer["error_code"]
    text = answer["content"]
    card.text, card.is_cut = text and text[:MOST_CHARS], len(text or "") > MOST_CHARS
    card.tools = tuple(call["name"] for call in answer["tool_calls"])
    card.tier = answer["tier"]
    card.latency_ms, card.cost_usd = answer["latency_ms"], answer["cost_usd"]


def _member_cards(members: Sequence[Fields]) -> list[Card]:
    """A card for each member that a plan names; those of the second wave are not asked yet."""
    note = "is asked if the edge members disagree"
    if all(member["wave"] for member in members):
        note = "is asked if the route chooses it"
    return [
        Card(
            member["name"],
            member["model"],
            member["tier"],
            state="unasked" if member["wave"] else "waiting",
            note=note if member["wave"] else None,
            samples=member["samples"],
        )
        for member in members
    ]
