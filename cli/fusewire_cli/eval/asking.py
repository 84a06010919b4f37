"""Makes the submissions of an evaluation, and scores their outcomes. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fusewire import ids
from fusewire.contracts import ANSWERED, RecordedAnswer
from fusewire_cli.eval.suite import MemberReply, Question
from fusewire_cli.eval.table import Score
from fusewire_judge.scoring.gold import is_right


@dataclass(frozen=True)
class Target:
    """The pool that is evaluated, with its judge."""

    pool: str
    judge: str | None
    config_hash: str
    """With another configuration, outcomes of this one are not used again."""

    def ask_body(self, question: Question, mode: str) -> str:
        """The submission, in JSON, that asks every member."""
        return json.dumps(self._body(question, mode) | {"complete": True})

    def fuse_body(
        self,
        question: Question,
        mode: str,
        replies: Iterable[MemberReply],
        weights: Mapping[str, float],
    ) -> str:
        """The submission, in JSON, that fuses recorded replies.

        Args:
            question: what was asked.
            mode: best-of, merge, debate or verify.
            replies: the members' replies.
            weights: the members' vote weights; 1 for those that have none.
        """
        recorded = []
        for reply in replies:
            weight = weights.get(reply.recorded.member, 1.0)
            answer = reply.recorded.model_copy(update={"weight": weight})
            recorded.append(answer.model_dump(mode="json", exclude_defaults=True))
        return json.dumps(self._body(question, mode) | {"recorded": recorded})

    def batch(self, bodies: Iterable[str], mode: str) -> str:
        """The id of a batch, made of its content: a repeated evaluation finds its outcomes."""
        content = ids.digest("eval", self.config_hash, *bodies).hex()
        return "eval-" + ids.batch_id("default", content, self.pool, mode)

    def _body(self, question: Question, mode: str) -> dict[str, Any]:
        gold = question.gold.model_dump(mode="json")
        body = question.body | {"pool": self.pool, "mode": mode, "gold": gold}
        return body | {"judge": self.judge} if self.judge else body


def read_replies(outcome: Mapping[str, Any]) -> list[MemberReply]:
    """The replies of the members in an outcome."""
    return [_reply(answer) for answer in outcome.get("answers", ())]


def _reply(answer: Mapping[str, Any]) -> MemberReply:
    usage = answer["usage"] or {}
    tool_calls = tuple(answer.get("tool_calls") or ())
    has_answer = answer["status"] == "ok" and (answer["content"] is not None or tool_calls)
    return MemberReply(
        recorded=RecordedAnswer(
            member=answer["member"],
            model=answer["model"],
            content=answer["content"] if has_answer else None,
            tool_calls=tool_calls if has_answer else (),
            error_code=None if has_answer else answer["error_code"] or answer["status"],
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            latency_ms=answer["latency_ms"] or 0.0,
            cost_usd=answer["cost_usd"],
        ),
        tokens=_tokens(usage),
        latency_ms=answer["latency_ms"],
        cost_usd=answer["cost_usd"],
    )


def _tokens(usage: Mapping[str, int]) -> int | None:
    """Tokens of prompt and answer; None if they were not counted."""
    return usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0) or None


def is_equally_weighed(outcome: Mapping[str, Any]) -> bool:
    """Whether all answers in an outcome had the same vote weight.

    Such an outcome need not be fused again with weights of 1.
    """
    answers = outcome.get("answers", ())
    weights = [answer.get("weight") for answer in answers if answer["status"] == "ok"]
    return bool(weights) and None not in weights and len(set(weights)) == 1


def score_reply(question: Question, reply: MemberReply | None) -> Score:
    """The score of a member's reply; None is a question that it was not asked."""
    if reply is None:
        return Score(is_right=False, is_failed=True, cost_usd=0.0, latency_ms=0.0, tokens=0)
    content = reply.recorded.content
    is_failed = content is None and not reply.recorded.tool_calls
    cost = reply.cost_usd
    if is_failed and cost is None and not reply.tokens:
        # A failure without tokens and without a price cost nothing.
        cost = 0.0
    right = is_right(content, question.gold)
    return Score(right, is_failed, cost_usd=cost, latency_ms=reply.latency_ms, tokens=reply.tokens)


def score_outcome(
    question: Question, outcome: Mapping[str, Any], member_replies: Sequence[MemberReply]
) -> Score:
    """The score of a fusion, with the cost and latency of asking its members at once.

    Args:
        question: what was asked.
        outcome: as the API shows it; the figures of a replay cover only the calls that it made
            itself, so the members' figures are added.
        member_replies: the members' replies.
    """
    is_failed = outcome["status"] not in ANSWERED
    cost = outcome.get("cost_usd")
    tokens = _tokens(outcome.get("usage") or {})
    members = [score_reply(question, reply) for reply in member_replies]
    latencies = [member.latency_ms for member in members]
    if outcome.get("is_replay"):
        cost = _sum([cost, *(m.cost_usd for m in members)])
        tokens = _sum([tokens, *(m.tokens for m in members)])
    return Score(
        is_right=not is_failed and is_right(outcome["content"], question.gold),
        is_failed=is_failed,
        is_degraded=bool(outcome.get("is_degraded")),
        cost_usd=cost,
        latency_ms=_sum([_most(latencies), outcome.get("judge_ms") or 0.0]),
        tokens=tokens,
    )


Figure = TypeVar("Figure", int, float)


def _sum(figures: Sequence[Figure | None]) -> Figure | None:
    """The sum; None if a figure is unknown."""
    known_figures = [figure for figure in figures if figure is not None]
    return sum(known_figures) if len(known_figures) == len(figures) else None


def _most(figures: Sequence[float | None]) -> float | None:
    """The largest; None if a figure is unknown, 0 if there are none."""
    known_figures = [figure for figure in figures if figure is not None]
    return max(known_figures, default=0.0) if len(known_figures) == len(figures) else None
