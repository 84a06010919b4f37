"""Rows of planted fusions, in the columns that ingest and the judge fill.

Bodies are written from templates and leave defaults out, which their contracts read as if they
were there: pydantic would take longer than all the rest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

from fusewire import ids
from fusewire.testing.planted.draw import (
    REASON,
    Ballot,
    Choice,
    Question,
    Reply,
    agreed,
    choose,
    groups,
    questions,
    replies,
    seed,
)
from fusewire.testing.planted.truth import PoolTruth, Truth

PRICE_VERSION = "planted-1"
PROVIDER = "openai"
PROMPT_TOKENS, JUDGE_PROMPT_TOKENS, JUDGE_TOKENS = 20, 300, 15
DEADLINE = timedelta(hours=1)
FAILURE = '{"code":"timeout","message":"it took too long","retryable":true}'

COLUMNS = {
    "prompts": "fusion_id tenant batch_id custom_id pool mode residency priority body body_hash"
    " prompt_hash submitted_at deadline_at published_at",
    "fusions": "fusion_id plan due_at is_done",
    "rounds": "fusion_id round body asked_at",
    "candidates": "fusion_id round call model tier error_code is_late after_rounds received_at body",
    "outcomes": "fusion_id is_degraded degraded_reasons status tenant batch_id custom_id pool mode"
    " config_hash prompt_hash content reason winner winner_model judge_model judge_rung agreement"
    " answer_kind closed_by missing_weight swap_consistent hedges is_replay accepted n_asked"
    " n_answered latency_ms panel_ms judge_ms tokens_in tokens_out tokens_cached tokens_thought"
    " cost_panel_usd cost_judge_usd cost_usd price_version error submitted_at finished_at body",
    "answers": "fusion_id member round call weight agreed vote_group is_right model tier provider"
    " status error_code shown_position is_winner attempts latency_ms tokens_in tokens_out cost_usd",
    "verdicts": "fusion_id call kind judge_model n_shown shown chars is_by_margin swap_of winner"
    " winner_position longest_position n_own_family is_own_family_winner is_control_winner rung"
    " is_consistent decided_at",
}
"""By table: the columns of its rows. The others are NULL."""

Rows = dict[str, list[tuple[Any, ...]]]
"""By table."""


def planted_rows(truth: Truth, count: int, random_seed: int, *, chunk: int = 2000) -> Iterator[Rows]:
    """Make the rows of `count` prompts, each in all pools, some prompts at a time.

    Args:
        truth: what is true of them.
        count: how many prompts; outcomes are as many for each pool.
        random_seed: equal seeds make equal rows, whatever the chunk.
        chunk: prompts in each part.
    """
    rng = Random(random_seed)  # noqa: S311 - no secret
    batch_ids: dict[tuple[str, int, str], str] = {}
    part: Rows = {table: [] for table in COLUMNS}
    for question in questions(truth, rng, count):
        for name, pool in truth.pools.items():
            panel = replies(truth, pool, question, rng)
            choice = choose(pool, question, panel, rng)
            batch_id = _batch_id(question, name, batch_ids)
            Fusion(question, name, pool, panel, choice, batch_id).add_to(part)
        if (question.number + 1) % chunk == 0:
            yield part
            part = {table: [] for table in COLUMNS}
    if part["prompts"]:
        yield part


def _batch_id(question: Question, pool: str, known: dict[tuple[str, int, str], str]) -> str | None:
    if question.batch is None:
        return None
    key = question.tenant, question.batch, pool
    if key not in known:
        known[key] = ids.batch_id(question.tenant, f"rows {question.batch}", pool, "best-of")
    return known[key]


@dataclass(slots=True)
class Totals:
    """Tokens and cost of some calls."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = 0.0
    has_price: bool = False
    has_cost: bool = False

    def add(self, tokens_in: int, tokens_out: int, cost_usd: float | None) -> None:
        """Add an answered call."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.has_cost = self.has_cost or bool(cost_usd)
        self.has_price = self.has_price or cost_usd is not None
        known = self.cost_usd is not None and cost_usd is not None
        self.cost_usd = self.cost_usd + cost_usd if known else None  # type: ignore[operator]


def _z(at: datetime) -> str:
    """A time in UTC as bodies hold it."""
    return at.isoformat()[:-6] + "Z"


def _json(value: float | str | None) -> str:
    return json.dumps(value)


def _ms(span: timedelta) -> float:
    return span.total_seconds() * 1000


@dataclass(slots=True)
class Fusion:
    """A decided prompt in one pool."""

    question: Question
    pool_name: str
    pool: PoolTruth
    panel: Sequence[Reply]
    choice: Choice
    batch_id: str | None
    fusion_id: str = field(init=False)
    custom_id: str = field(init=False)
    prompt_hash: str = ""
    asked_at: datetime = field(init=False)
    """When the panel was complete, and the judge's first round asked for."""
    finished_at: datetime = field(init=False)
    members: Totals = field(default_factory=Totals)
    judges: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        """Name it, time it and add it up."""
        question = self.question
        self.custom_id = f"row-{question.number}-{self.pool_name}"
        self.fusion_id = ids.fusion_id(question.tenant, self.batch_id, self.custom_id)
        panel_ms = max(reply.latency_ms for reply in self.panel)
        self.asked_at = question.at + timedelta(milliseconds=panel_ms)
        self.finished_at = self.asked_at
        for ballots in self.choice.rounds:
            judge_ms = max(ballot.latency_ms for ballot in ballots)
            self.finished_at += timedelta(milliseconds=judge_ms)
        for reply in self.panel:
            if reply.content is not None:
                self.members.add(PROMPT_TOKENS, _tokens(reply.content), reply.member.cost_usd)
        judge = self.pool.judge
        for _ in self._ballots():
            self.judges.add(JUDGE_PROMPT_TOKENS, JUDGE_TOKENS, judge.cost_usd if judge else None)

    def _ballots(self) -> list[Ballot]:
        found: list[Ballot] = []
        for ballots in self.choice.rounds:
            found += ballots
        return found

    def add_to(self, rows: Rows) -> None:
        """Add its rows."""
        rows["prompts"].append(self._prompt())
        rows["fusions"].append((self.fusion_id, self._plan(), None, True))
        for reply in self.panel:
            rows["candidates"].append(self._member_candidate(reply))
        asked_at = self.asked_at
        for number, ballots in enumerate(self.choice.rounds, 1):
            rows["rounds"].append((self.fusion_id, number, self._round(number, ballots), asked_at))
            for ballot in ballots:
                rows["candidates"].append(self._judge_candidate(number, ballot, asked_at))
            asked_at += timedelta(milliseconds=max(ballot.latency_ms for ballot in ballots))
        answer_bodies = self._add_answers(rows["answers"])
        verdict_bodies = self._add_verdicts(rows["verdicts"])
        rows["outcomes"].append(self._outcome(answer_bodies, verdict_bodies))

    # -- what was asked --------------------------------------------------------------------

    def _prompt(self) -> tuple[Any, ...]:
        question = self.question
        messages = f'"messages":[{{"role":"user","content":"{question.text}"}}]'
        batch = f'"batch_id":"{self.batch_id}",' if self.batch_id else ""
        gold = ""
        if question.gold:
            answer, match = question.gold
            gold = f'"gold":{{"answer":"{answer}","match":"{match}"}},'
        client_fields = (
            f'"fusion_id":"{self.fusion_id}","tenant":"{question.tenant}",{batch}'
            f'"custom_id":"{self.custom_id}","pool":"{self.pool_name}","mode":"best-of",{messages},'
            f'{gold}"residency":"any","priority":"normal","seed":{seed(question)}'
        )
        deadline_at = question.at + DEADLINE
        times = f'"submitted_at":"{_z(question.at)}","deadline_at":"{_z(deadline_at)}"'
        self.prompt_hash = _digest("prompt", f"{{{messages}}}")
        return (
            self.fusion_id,
            question.tenant,
            self.batch_id,
            self.custom_id,
            self.pool_name,
            "best-of",
            "any",
            "normal",
            f'{{"v":1,{client_fields},{times}}}',
            _digest("body", f"{{{client_fields}}}"),
            self.prompt_hash,
            question.at,
            deadline_at,
            question.at,
        )

    def _plan(self) -> str:
        question, pool = self.question, self.pool
        at, deadline = _z(question.at), _z(question.at + DEADLINE)
        return (
            f'{{"v":1,"fusion_id":"{self.fusion_id}","tenant":"{question.tenant}",'
            f'"pool":"{self.pool_name}","mode":"best-of",{pool.body_fields},'
            '"policy":{"early_stop":1.0,"control_share":0.0},"quorum":1.0,"debate_rounds":2,'
            f'"residency":"any","priority":"normal","seed":{seed(question)},"submitted_at":"{at}",'
            f'"planned_at":"{at}","panel_deadline_at":"{deadline}","deadline_at":"{deadline}",'
            f'"config_hash":"{pool.config_hash}"}}'
        )

    def _round(self, number: int, ballots: Sequence[Ballot]) -> str:
        judge = self.pool.judge
        model = judge.model if judge else ""
        calls = ",".join(
            f'{{"name":"{ballot.call}","kind":"verdict","model":"{model}",'
            '"messages":[{"role":"user","content":"Which answer is best?"}]}'
            for ballot in ballots
        )
        return (
            f'{{"v":1,"fusion_id":"{self.fusion_id}","round":{number},'
            f'"tenant":"{self.question.tenant}","pool":"{self.pool_name}","calls":[{calls}],'
            f'"residency":"any","priority":"normal","seed":{seed(self.question)},'
            f'"deadline_at":"{_z(self.question.at + DEADLINE)}"}}'
        )

    # -- what came back --------------------------------------------------------------------

    def _member_candidate(self, reply: Reply) -> tuple[Any, ...]:
        member, at = reply.member, self.question.at
        received_at = at + timedelta(milliseconds=reply.latency_ms)
        head = f'"member":"{member.model}","model":"{member.model}","tier":"{member.tier}"'
        rest = f'"error":{FAILURE}'
        if reply.content is not None:
            usage = PROMPT_TOKENS, _tokens(reply.content)
            rest = _answer_fields(f'"{reply.content}"', usage, member.cost_usd)
        body = self._candidate_body(0, member.model, head, rest, (at, received_at))
        error_code = None if reply.content is not None else "timeout"
        return (
            self.fusion_id, 0, member.model, member.model, member.tier, error_code, False, 0,
            received_at, body,
        )  # fmt: skip

    def _judge_candidate(self, number: int, ballot: Ballot, at: datetime) -> tuple[Any, ...]:
        judge = self.pool.judge
        model, cost_usd = (judge.model, judge.cost_usd) if judge else ("", None)
        received_at = at + timedelta(milliseconds=ballot.latency_ms)
        content = json.dumps(f'{{"reason": "{REASON}", "winner": "{label(ballot)}"}}')
        rest = _answer_fields(content, (JUDGE_PROMPT_TOKENS, JUDGE_TOKENS), cost_usd)
        head = f'"model":"{model}","tier":"remote"'
        body = self._candidate_body(number, ballot.call, head, rest, (at, received_at))
        return (
            self.fusion_id, number, ballot.call, model, "remote", None, False, number, received_at,
            body,
        )  # fmt: skip

    def _candidate_body(
        self, round_: int, call: str, head: str, rest: str, times: tuple[datetime, datetime]
    ) -> str:
        return (
            f'{{"v":1,"task_id":"{self.fusion_id}-{round_}-{call}","fusion_id":"{self.fusion_id}",'
            f'"round":{round_},"call":"{call}",{head},"provider":"{PROVIDER}",{rest},'
            f'"started_at":"{_z(times[0])}","finished_at":"{_z(times[1])}"}}'
        )

    # -- what became of it -----------------------------------------------------------------

    def _add_answers(self, rows: list[tuple[Any, ...]]) -> str:
        """Add the rows of answers; returns their bodies."""
        answers = [reply for reply in self.panel if reply.content is not None]
        places: dict[int, int] = {}
        if not self.question.is_open:
            places = {group[0].value: place for place, group in enumerate(groups(answers))}
        rounds = self.choice.rounds
        shown = [reply.member.model for reply in rounds[0][0].shown] if rounds else []
        bodies = []
        for reply in self.panel:
            is_vote = reply.content is not None and not self.question.is_open
            agrees = agreed(reply, answers) if is_vote else None
            group = places.get(reply.value) if is_vote else None
            position = shown.index(reply.member.model) + 1 if reply.member.model in shown else None
            rows.append(self._answer_row(reply, agrees, group, position))
            bodies.append(self._answer_body(reply, agrees, group, position))
        return ",".join(bodies)

    def _answer_row(
        self, reply: Reply, agrees: bool | None, group: int | None, position: int | None
    ) -> tuple[Any, ...]:
        member, is_ok = reply.member, reply.content is not None
        return (
            self.fusion_id, member.model, 0, member.model, member.weight if is_ok else None,
            agrees, group, reply.is_right if self.question.has_gold else None, member.model,
            member.tier, PROVIDER, "ok" if is_ok else "error", None if is_ok else "timeout",
            position, reply is self.choice.winner, 1, float(reply.latency_ms),
            PROMPT_TOKENS if is_ok else 0, _tokens(reply.content), member.cost_usd if is_ok else 0.0,
        )  # fmt: skip

    def _answer_body(
        self, reply: Reply, agrees: bool | None, group: int | None, position: int | None
    ) -> str:
        member = reply.member
        is_right = reply.is_right if self.question.has_gold else None
        rest = '"status":"error","error_code":"timeout","cost_usd":0.0'
        if reply.content is not None:
            rest = (
                f'"status":"ok","finish_reason":"stop","weight":{member.weight},'
                f'"agreed":{_json(agrees)},"vote_group":{_json(group)},'
                f'"shown_position":{_json(position)},"usage":{{"prompt_tokens":{PROMPT_TOKENS},'
                f'"completion_tokens":{_tokens(reply.content)}}},'
                f'"cost_usd":{_json(member.cost_usd)}'
            )
        return (
            f'{{"member":"{member.model}","model":"{member.model}","tier":"{member.tier}",'
            f'"round":0,"call":"{member.model}","is_right":{_json(is_right)},'
            f'"is_winner":{_json(reply is self.choice.winner)},'
            f'"latency_ms":{float(reply.latency_ms)},{rest}}}'
        )

    def _add_verdicts(self, rows: list[tuple[Any, ...]]) -> str:
        """Add the rows of verdicts; returns their bodies."""
        bodies = []
        for ballots in self.choice.rounds:
            for ballot in ballots:
                rows.append(self._verdict_row(ballot, ballots))
                bodies.append(self._verdict_body(ballot))
        return ",".join(bodies)

    def _verdict_row(self, ballot: Ballot, ballots: Sequence[Ballot]) -> tuple[Any, ...]:
        judge = self.pool.judge
        family, model = (judge.family, judge.model) if judge else ("", "")
        families = [reply.member.family or reply.member.model for reply in ballot.shown]
        chars = [len(reply.content or "") for reply in ballot.shown]
        longest = max(chars)
        swap_of = None
        if ballot.is_consistent is not None:
            swap_of = next(other.call for other in ballots if other is not ballot)
        place = ballot.shown.index(ballot.winner)
        return (
            self.fusion_id, ballot.call, ballot.kind, model, len(chars),
            json.dumps([reply.member.model for reply in ballot.shown]), json.dumps(chars), False,
            swap_of, ballot.winner.member.model, place + 1,
            chars.index(longest) + 1 if chars.count(longest) == 1 else None,
            families.count(family), families[place] == family, False, "strict",
            ballot.is_consistent, self.finished_at,
        )  # fmt: skip

    def _verdict_body(self, ballot: Ballot) -> str:
        shown = ",".join(f'"{reply.member.model}"' for reply in ballot.shown)
        chars = ",".join(str(len(reply.content or "")) for reply in ballot.shown)
        model = self.pool.judge.model if self.pool.judge else ""
        return (
            f'{{"call":"{ballot.call}","kind":"{ballot.kind}","judge_model":"{model}",'
            f'"shown":[{shown}],"chars":[{chars}],"winner":"{ballot.winner.member.model}",'
            f'"rung":"strict","is_consistent":{_json(ballot.is_consistent)}}}'
        )

    def _outcome(self, answer_bodies: str, verdict_bodies: str) -> tuple[Any, ...]:
        question, choice, winner = self.question, self.choice, self.choice.winner
        failures = [reply.member for reply in self.panel if reply.content is None]
        answered_count = len(self.panel) - len(failures)
        is_judged = bool(choice.rounds)
        flags = [b.is_consistent for b in self._ballots() if b.is_consistent is not None]
        costs = self.members.cost_usd, self.judges.cost_usd
        judge_model = self.pool.judge.model if self.pool.judge and is_judged else None
        values: dict[str, Any] = {
            "is_degraded": bool(failures),
            "degraded_reasons": [f"failed:{member.model}:timeout" for member in failures],
            "status": choice.status,
            "content": winner.content if winner else None,
            "reason": choice.reason,
            "winner": winner.member.model if winner else None,
            "judge_model": judge_model,
            "judge_rung": "strict" if is_judged else None,
            "agreement": choice.agreement,
            "answer_kind": ("open" if question.is_open else "number") if answered_count else None,
            "missing_weight": self._missing_weight(),
            "swap_consistent": all(flags) if flags else None,
            "accepted": bool(winner and winner.is_right) if question.has_gold else None,
            "panel_ms": _ms(self.asked_at - question.at),
            "judge_ms": _ms(self.finished_at - self.asked_at) if is_judged else None,
            "cost_usd": None if None in costs else self._cost(),
            "error": choice.error,
        }
        body = self._outcome_body(values, answer_bodies, verdict_bodies)
        return self._outcome_row(values, answered_count, body)

    def _missing_weight(self) -> float:
        members = self.pool.members
        present = sum(reply.member.weight for reply in self.panel if reply.content is not None)
        return max(1.0 - present / sum(member.weight for member in members), 0.0)

    def _cost(self) -> float:
        """What it cost, added up in the order of calls as the judge does."""
        total = 0.0
        for reply in self.panel:
            if reply.content is not None:
                total += reply.member.cost_usd or 0.0
        judge_usd = self.pool.judge.cost_usd if self.pool.judge else 0.0
        for _ in self._ballots():
            total += judge_usd or 0.0
        return total

    def _outcome_row(self, values: dict[str, Any], answered_count: int, body: str) -> tuple[Any, ...]:
        question, members, judges = self.question, self.members, self.judges
        row = {
            **values,
            "fusion_id": self.fusion_id,
            "degraded_reasons": json.dumps(values["degraded_reasons"]),
            "tenant": question.tenant,
            "batch_id": self.batch_id,
            "custom_id": self.custom_id,
            "pool": self.pool_name,
            "mode": "best-of",
            "config_hash": self.pool.config_hash,
            "prompt_hash": self.prompt_hash,
            "winner_model": values["winner"],
            "closed_by": "complete",
            "hedges": 0,
            "is_replay": False,
            "n_asked": len(self.panel),
            "n_answered": answered_count,
            "latency_ms": _ms(self.finished_at - question.at),
            "tokens_in": members.tokens_in + judges.tokens_in,
            "tokens_out": members.tokens_out + judges.tokens_out,
            "tokens_cached": 0,
            "tokens_thought": 0,
            "cost_panel_usd": members.cost_usd,
            "cost_judge_usd": judges.cost_usd,
            "price_version": PRICE_VERSION if members.has_price or judges.has_price else None,
            "submitted_at": question.at,
            "finished_at": self.finished_at,
            "body": body,
        }
        return tuple([row[name] for name in _OUTCOME_COLUMNS])

    def _outcome_body(
        self, values: dict[str, Any], answer_bodies: str, verdict_bodies: str
    ) -> str:
        question, members, judges = self.question, self.members, self.judges
        batch = f'"batch_id":"{self.batch_id}",' if self.batch_id else ""
        prompt_usd = ',"cost_prompt_usd":0.0'
        if values["cost_usd"] is None or members.has_cost or judges.has_cost:
            prompt_usd = ""
        return (
            f'{{"v":1,"fusion_id":"{self.fusion_id}","tenant":"{question.tenant}",{batch}'
            f'"custom_id":"{self.custom_id}","pool":"{self.pool_name}","mode":"best-of",'
            f'{json.dumps(values, separators=(",", ":"))[1:-1]},"closed_by":"complete",'
            f'"rounds":{len(self.choice.rounds)},"answers":[{answer_bodies}],'
            f'"verdicts":[{verdict_bodies}],'
            f'"usage":{{"prompt_tokens":{members.tokens_in + judges.tokens_in},'
            f'"completion_tokens":{members.tokens_out + judges.tokens_out}}},'
            f'"submitted_at":"{_z(question.at)}","finished_at":"{_z(self.finished_at)}",'
            f'"config_hash":"{self.pool.config_hash}"{prompt_usd}}}'
        )


_OUTCOME_COLUMNS = COLUMNS["outcomes"].split()


def label(ballot: Ballot) -> str:
    """The label under which a ballot's winner was shown: here, its place as two letters."""
    return "BCDFGHJKLMNPQRSTVWXZ"[ballot.shown.index(ballot.winner) % 20] * 2


def _answer_fields(content: str, usage: tuple[int, int], cost_usd: float | None) -> str:
    """The part of a candidate's body that an answer has and a failure lacks."""
    price = ""
    if cost_usd is not None:
        price = f',"cost_usd":{cost_usd},"price_version":"{PRICE_VERSION}"'
    return (
        f'"content":{content},"finish_reason":"stop","usage":{{"prompt_tokens":{usage[0]},'
        f'"completion_tokens":{usage[1]}}}{price}'
    )


def _tokens(content: str | None) -> int:
    return len(content) // 4 + 1 if content is not None else 0


def _digest(name: str, text: str) -> str:
    return ids.digest(name, text).hex()
