"""Rows of a planted outcome, its answers and its verdicts, in the judge's columns."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from fusewire.testing.planted.draw import Ballot, Reply, agrees, groups
from fusewire.testing.planted.fusion import PROMPT_TOKENS, Fusion, json_text, tokens
from fusewire.testing.planted.messages import PRICE_VERSION, PROVIDER, Row

OUTCOME_COLUMNS = (
    "fusion_id is_degraded degraded_reasons status tenant batch_id custom_id pool mode"
    " config_hash prompt_hash content reason winner winner_model judge_model judge_rung agreement"
    " answer_kind closed_by missing_weight swap_consistent hedges is_replay accepted n_asked"
    " n_answered latency_ms panel_ms judge_ms tokens_in tokens_out tokens_cached tokens_thought"
    " cost_panel_usd cost_judge_usd cost_usd price_version error submitted_at finished_at body"
)
_NAMES = OUTCOME_COLUMNS.split()

# -- answers ----------------------------------------------------------------------------------


def add_answers(fusion: Fusion, rows: list[Row]) -> str:
    """Add the rows of `answers`; return their JSON."""
    places: dict[int, int] = {}
    if not fusion.question.is_open:
        places = {group[0].value: place for place, group in enumerate(groups(fusion.answers))}
    lineup = fusion.ballots[0].shown if fusion.ballots else []
    bodies = []
    for reply in fusion.panel:
        agreement, group = None, None
        if places and reply.content is not None:
            agreement, group = agrees(reply, fusion.answers), places[reply.value]
        position = lineup.index(reply) + 1 if reply in lineup else None
        rows.append(_answer_row(fusion, reply, (agreement, group, position)))
        bodies.append(_answer_body(fusion, reply, (agreement, group, position)))
    return ",".join(bodies)


Place = tuple[bool | None, int | None, int | None]
"""Whether an answer agrees with the others, its group, and where the judge saw it."""


def _answer_row(fusion: Fusion, reply: Reply, place: Place) -> Row:
    member, is_ok = reply.member, reply.content is not None
    agreement, group, position = place
    return (
        fusion.fusion_id, member.model, 0, member.model, member.weight if is_ok else None,
        agreement, group, reply.is_right if fusion.question.has_gold else None, member.model,
        member.tier, PROVIDER, "ok" if is_ok else "error", None if is_ok else "timeout",
        position, reply is fusion.choice.winner, 1, float(reply.latency_ms),
        PROMPT_TOKENS if is_ok else 0, tokens(reply.content), member.cost_usd if is_ok else 0.0,
    )  # fmt: skip


def _answer_body(fusion: Fusion, reply: Reply, place: Place) -> str:
    member = reply.member
    agreement, group, position = place
    is_right = reply.is_right if fusion.question.has_gold else None
    rest = '"status":"error","error_code":"timeout","cost_usd":0.0'
    if reply.content is not None:
        rest = (
            f'"status":"ok","finish_reason":"stop","weight":{member.weight},'
            f'"agreed":{json_text(agreement)},"vote_group":{json_text(group)},'
            f'"shown_position":{json_text(position)},"usage":{{"prompt_tokens":{PROMPT_TOKENS},'
            f'"completion_tokens":{tokens(reply.content)}}},'
            f'"cost_usd":{json_text(member.cost_usd)}'
        )
    return (
        f'{{"member":"{member.model}","model":"{member.model}","tier":"{member.tier}",'
        f'"round":0,"call":"{member.model}","is_right":{json_text(is_right)},'
        f'"is_winner":{json_text(reply is fusion.choice.winner)},'
        f'"latency_ms":{float(reply.latency_ms)},{rest}}}'
    )


# -- verdicts ---------------------------------------------------------------------------------


def add_verdicts(fusion: Fusion, rows: list[Row]) -> str:
    """Add the rows of `verdicts`; return their JSON."""
    bodies = []
    for ballots in fusion.choice.rounds:
        for ballot in ballots:
            members = ", ".join([f'"{reply.member.model}"' for reply in ballot.shown])
            chars = [len(reply.content or "") for reply in ballot.shown]
            rows.append(_verdict_row(fusion, ballot, ballots, members, chars))
            bodies.append(
                f'{{"call":"{ballot.call}","kind":"{ballot.kind}",'
                f'"judge_model":"{fusion.judge_model}","shown":[{members}],"chars":{chars},'
                f'"winner":"{ballot.winner.member.model}","rung":"strict",'
                f'"is_consistent":{json_text(ballot.is_consistent)}}}'
            )
    return ",".join(bodies)


def _verdict_row(
    fusion: Fusion, ballot: Ballot, ballots: Sequence[Ballot], members: str, chars: list[int]
) -> Row:
    family = fusion.judge_family
    families = [reply.member.family or reply.member.model for reply in ballot.shown]
    longest = max(chars)
    swap_of = None
    if ballot.is_consistent is not None:
        swap_of = next(other.call for other in ballots if other is not ballot)
    place = ballot.shown.index(ballot.winner)
    return (
        fusion.fusion_id, ballot.call, ballot.kind, fusion.judge_model, len(chars), f"[{members}]",
        str(chars), False, swap_of, ballot.winner.member.model, place + 1,
        chars.index(longest) + 1 if chars.count(longest) == 1 else None,
        families.count(family), families[place] == family, False, "strict",
        ballot.is_consistent, fusion.finished_at,
    )  # fmt: skip


# -- the outcome ------------------------------------------------------------------------------


def outcome_row(fusion: Fusion, prompt_hash: str, answer_bodies: str, verdict_bodies: str) -> Row:
    """Build the row of `outcomes`."""
    common = _common_fields(fusion)
    own_fields = {
        "fusion_id": fusion.fusion_id,
        "tenant": fusion.question.tenant,
        "batch_id": fusion.batch_id,
        "custom_id": fusion.custom_id,
        "pool": fusion.pool_name,
        "mode": "best-of",
        "config_hash": fusion.pool.config_hash,
        "closed_by": "complete",
    }
    failures = [reply.member.model for reply in fusion.panel if reply.content is None]
    reasons = "[" + ", ".join([f'"failed:{model}:timeout"' for model in failures]) + "]"
    calls = fusion.all_calls
    body = (
        f'{{"v":1,{_json_fields(own_fields)},{_json_fields(common)},"degraded_reasons":{reasons},'
        f'"rounds":{len(fusion.choice.rounds)},"answers":[{answer_bodies}],'
        f'"verdicts":[{verdict_bodies}],"usage":{{"prompt_tokens":{calls.tokens_in},'
        f'"completion_tokens":{calls.tokens_out}}},"submitted_at":"{fusion.at_text}",'
        f'"finished_at":"{fusion.finished_text}",'
        # What costs nothing has no part whose price is unknown.
        f'"cost_prompt_usd":{"0.0" if calls.cost_usd == 0 else "null"}}}'
    )
    row = {
        **own_fields,
        **common,
        "degraded_reasons": reasons,
        "prompt_hash": prompt_hash,
        "winner_model": common["winner"],
        "hedges": 0,
        "is_replay": False,
        "n_asked": len(fusion.panel),
        "n_answered": len(fusion.answers),
        "latency_ms": _ms(fusion.finished_at - fusion.question.at),
        "tokens_in": calls.tokens_in,
        "tokens_out": calls.tokens_out,
        "tokens_cached": 0,
        "tokens_thought": 0,
        "cost_panel_usd": fusion.members.cost_usd,
        "cost_judge_usd": fusion.judges.cost_usd,
        "price_version": PRICE_VERSION if calls.has_price else None,
        "submitted_at": fusion.question.at,
        "finished_at": fusion.finished_at,
        "body": body,
    }
    return tuple([row[name] for name in _NAMES])


def _common_fields(fusion: Fusion) -> dict[str, Any]:
    """The fields that the row and the body of an outcome share."""
    question, choice, is_judged = fusion.question, fusion.choice, bool(fusion.ballots)
    flags = [ballot.is_consistent for ballot in fusion.ballots if ballot.is_consistent is not None]
    weight = sum(member.weight for member in fusion.pool.members)
    present = sum(reply.member.weight for reply in fusion.answers)
    kind = "open" if question.is_open else "number"
    return {
        "is_degraded": len(fusion.answers) < len(fusion.panel),
        "status": choice.status,
        **_winner_fields(fusion),
        "reason": choice.reason,
        "judge_model": fusion.judge_model if is_judged else None,
        "judge_rung": "strict" if is_judged else None,
        "agreement": choice.agreement,
        "answer_kind": kind if fusion.answers else None,
        "missing_weight": max(1.0 - present / weight, 0.0),
        "swap_consistent": all(flags) if flags else None,
        "panel_ms": _ms(fusion.panel_end_at - question.at),
        "judge_ms": _ms(fusion.finished_at - fusion.panel_end_at) if is_judged else None,
        "cost_usd": fusion.all_calls.cost_usd,
        "error": choice.error,
    }


def _winner_fields(fusion: Fusion) -> dict[str, Any]:
    winner, has_gold = fusion.choice.winner, fusion.question.has_gold
    if winner is None:
        return {"content": None, "winner": None, "accepted": False if has_gold else None}
    accepted = winner.is_right if has_gold else None
    return {"content": winner.content, "winner": winner.member.model, "accepted": accepted}


def _json_fields(fields: dict[str, Any]) -> str:
    # No text of a planted outcome needs an escape.
    return ",".join(
        [
            f'"{name}":"{value}"' if isinstance(value, str) else f'"{name}":{json_text(value)}'
            for name, value in fields.items()
        ]
    )


def _ms(span: timedelta) -> float:
    return span.total_seconds() * 1000
