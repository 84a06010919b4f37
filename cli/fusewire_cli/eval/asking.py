"""What an evaluation submits, and what it makes of the outcomes. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fusewire import ids
from fusewire.contracts import RecordedAnswer
from fusewire_cli.batch import ANSWERED
from fusewire_cli.eval.suite import MemberReply, Question
from fusewire_cli.eval.table import Score
from fusewire_judge.scoring.gold import is_right


@dataclass(frozen=True)
class Target:
    """Who is evaluated."""

    pool: str
    judge: str | None
    config_hash: str
    """Another configuration is another evaluation, and its outcomes are not those of this one."""

    def first(self, question: Question, mode: str) -> str:
        """A submission that asks every member."""
        return json.dumps(self._body(question, mode) | {"complete": True})

    def again(
        self,
        question: Question,
        mode: str,
        replies: Iterable[MemberReply],
        weights: Mapping[str, float],
    ) -> str:
        """A submission that fuses what was answered, each voice counted by its weight, or 1."""
        recorded = [
            reply.recorded.model_copy(update={"weight": weights.get(reply.recorded.member, 1.0)})
            for reply in replies
        ]
        listed = [one.model_dump(mode="json", exclude_defaults=True) for one in recorded]
        return json.dumps(self._body(question, mode) | {"recorded": listed})

    def batch(self, bodies: Iterable[str], mode: str) -> str:
        """The id of a batch, made of all that is in it: the same evaluation again finds its outcomes."""
        content = ids.digest("eval", self.config_hash, *bodies).hex()
        return "eval-" + ids.batch_id("default", content, self.pool, mode)

    def _body(self, question: Question, mode: str) -> dict[str, Any]:
        chosen = {"pool": self.pool, "mode": mode, "gold": question.gold.model_dump(mode="json")}
        return question.body | chosen | ({"judge": self.judge} if self.judge else {})


def replies(outcome: Mapping[str, Any]) -> list[MemberReply]:
    """What the members answered in an outcome."""
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
    """Tokens of prompt and answer; None where they were not counted."""
    return usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0) or None


def is_equally_weighed(outcome: Mapping[str, Any]) -> bool:
    """Whether every voice in an outcome counted the same, so that it need not be fused again with weights of 1."""
    weights = [
        answer.get("weight") for answer in outcome.get("answers", ()) if answer["status"] == "ok"
    ]
    return bool(weights) and None not in weights and len(set(weights)) == 1


def scored_reply(question: Question, reply: MemberReply | None) -> Score:
    """How a member did; None where it was not asked."""
    if reply is None:
        return Score(is_right=False, is_failed=True, cost_usd=0.0, latency_ms=0.0, tokens=0)
    content = reply.recorded.content
    is_failed = content is None and not reply.recorded.tool_calls
    cost = 0.0 if is_failed and reply.cost_usd is None and not reply.tokens else reply.cost_usd
    right = is_right(content, question.gold)
    return Score(right, is_failed, cost_usd=cost, latency_ms=reply.latency_ms, tokens=reply.tokens)


def scored_outcome(
    question: Question, outcome: Mapping[str, Any], said: Sequence[MemberReply]
) -> Score:
    """How a fusion of these replies did, at what it costs to ask their members at once.

    Args:
        question: what was asked.
        outcome: as the API shows it; the figures of a replay are those of the calls that it made itself.
        said: the members' replies.
    """
    is_failed = outcome["status"] not in ANSWERED
    cost = outcome.get("cost_usd")
    tokens = _tokens(outcome.get("usage") or {})
    members = [scored_reply(question, reply) for reply in said]
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
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def _most(figures: Sequence[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return max(known, default=0.0) if len(known) == len(figures) else None
