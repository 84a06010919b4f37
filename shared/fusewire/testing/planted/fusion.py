"""A planted fusion: its names, times, tokens and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fusewire import ids
from fusewire.testing.planted.draw import Ballot, Choice, Question, Reply
from fusewire.testing.planted.truth import PoolTruth

PROMPT_TOKENS, JUDGE_PROMPT_TOKENS, JUDGE_TOKENS = 20, 300, 15
DEADLINE = timedelta(hours=1)


@dataclass(slots=True)
class Totals:
    """Tokens and cost of some calls."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = 0.0
    has_price: bool = False

    def add(self, tokens_in: int, tokens_out: int, cost_usd: float | None) -> None:
        """Add an answered call."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        if cost_usd is None or self.cost_usd is None:
            self.cost_usd = None
        else:
            self.cost_usd += cost_usd
        self.has_price = self.has_price or cost_usd is not None


class Fusion:
    """A prompt in one pool, and how it ended."""

    def __init__(
        self,
        question: Question,
        pool: tuple[str, PoolTruth],
        panel: Sequence[Reply],
        choice: Choice,
        batch_id: str | None,
    ) -> None:
        self.question, self.panel, self.choice, self.batch_id = question, panel, choice, batch_id
        self.pool_name, self.pool = pool
        self.custom_id = f"row-{question.number}-{self.pool_name}"
        self.fusion_id = ids.fusion_id(question.tenant, batch_id, self.custom_id)
        self.answers = [reply for reply in panel if reply.content is not None]
        self.ballots: list[Ballot] = []
        self.asked_at: list[datetime] = []
        """When each round of the judge was asked for."""
        self._time()
        self.members, self.judges, self.all_calls = Totals(), Totals(), Totals()
        self._add_up()
        judge = pool[1].judge
        self.judge_model = judge.model if judge else ""
        self.judge_usd = judge.cost_usd if judge else None
        self.judge_family = judge.family if judge else ""

    def _time(self) -> None:
        panel_ms = max(reply.latency_ms for reply in self.panel)
        self.panel_end_at = self.finished_at = self.question.at + timedelta(milliseconds=panel_ms)
        for ballots in self.choice.rounds:
            self.ballots += ballots
            self.asked_at.append(self.finished_at)
            judge_ms = max(ballot.latency_ms for ballot in ballots)
            self.finished_at += timedelta(milliseconds=judge_ms)
        self.at_text, self.finished_text = utc_text(self.question.at), utc_text(self.finished_at)
        self.deadline_at = self.question.at + DEADLINE
        self.deadline_text = utc_text(self.deadline_at)

    def _add_up(self) -> None:
        """Add up tokens and costs, in the order of the calls as the judge does."""
        for reply in self.answers:
            usage = PROMPT_TOKENS, tokens(reply.content), reply.member.cost_usd
            self.members.add(*usage)
            self.all_calls.add(*usage)
        judge = self.pool.judge
        for _ in self.ballots:
            usage = JUDGE_PROMPT_TOKENS, JUDGE_TOKENS, judge.cost_usd if judge else None
            self.judges.add(*usage)
            self.all_calls.add(*usage)


def tokens(content: str | None) -> int:
    """The tokens of an answer; 0 of a failure."""
    return len(content) // 4 + 1 if content is not None else 0


def utc_text(at: datetime) -> str:
    """A time in UTC as bodies hold it."""
    return at.isoformat()[:-6] + "Z"


def json_text(value: float | None) -> str:
    """A number, a truth value or null as JSON. `json.dumps` takes ten times as long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
