"""Rows of what was submitted, planned, asked and answered."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fusewire import ids
from fusewire.testing.planted.draw import REASON, Ballot, Reply, seed
from fusewire.testing.planted.fusion import (
    JUDGE_PROMPT_TOKENS,
    JUDGE_TOKENS,
    PROMPT_TOKENS,
    Fusion,
    json_text,
    tokens,
    utc_text,
)

PROVIDER = "openai"
PRICE_VERSION = "planted-1"
_FAILURE = '"error":{"code":"timeout","message":"it took too long","retryable":true}'
_LABELS = "BCDFGHJKLMNPQRSTVWXZ"

Row = tuple[Any, ...]


def prompt_row(fusion: Fusion) -> tuple[Row, str]:
    """Build the row of `prompts`.

    Returns:
        (row, its prompt hash)
    """
    question = fusion.question
    messages = f'"messages":[{{"role":"user","content":"{question.text}"}}]'
    batch = f'"batch_id":"{fusion.batch_id}",' if fusion.batch_id else ""
    gold = ""
    if question.gold:
        gold = '"gold":{{"answer":"{}","match":"{}"}},'.format(*question.gold)
    client_fields = (
        f'"fusion_id":"{fusion.fusion_id}","tenant":"{question.tenant}",{batch}'
        f'"custom_id":"{fusion.custom_id}","pool":"{fusion.pool_name}","mode":"best-of",{messages},'
        f'{gold}"residency":"any","priority":"normal","seed":{seed(question)}'
    )
    times = f'"submitted_at":"{fusion.at_text}","deadline_at":"{fusion.deadline_text}"'
    prompt_hash = ids.digest("prompt", f"{{{messages}}}").hex()
    row = (
        fusion.fusion_id,
        question.tenant,
        fusion.batch_id,
        fusion.custom_id,
        fusion.pool_name,
        "best-of",
        "any",
        "normal",
        f'{{"v":1,{client_fields},{times}}}',
        ids.digest("body", f"{{{client_fields}}}").hex(),
        prompt_hash,
        question.at,
        fusion.deadline_at,
        question.at,
    )
    return row, prompt_hash


def fusion_row(fusion: Fusion) -> Row:
    """Build the row of `fusions`, with the plan."""
    pool, at, deadline = fusion.pool, fusion.at_text, fusion.deadline_text
    plan = (
        f'{{"v":1,"fusion_id":"{fusion.fusion_id}","tenant":"{fusion.question.tenant}",'
        f'"pool":"{fusion.pool_name}","mode":"best-of",{pool.body_fields},'
        '"policy":{"early_stop":1.0,"control_share":0.0},"quorum":1.0,"debate_rounds":2,'
        f'"residency":"any","priority":"normal","seed":{seed(fusion.question)},'
        f'"submitted_at":"{at}","planned_at":"{at}","panel_deadline_at":"{deadline}",'
        f'"deadline_at":"{deadline}","config_hash":"{pool.config_hash}"}}'
    )
    return fusion.fusion_id, plan, None, True


def round_rows(fusion: Fusion) -> list[Row]:
    """Build the rows of `rounds`: those of the judge."""
    return [
        (fusion.fusion_id, number, _round_body(fusion, number, ballots), asked_at)
        for number, (ballots, asked_at) in enumerate(
            zip(fusion.choice.rounds, fusion.asked_at, strict=True), 1
        )
    ]


def _round_body(fusion: Fusion, number: int, ballots: Sequence[Ballot]) -> str:
    calls = ",".join(
        f'{{"name":"{ballot.call}","kind":"verdict","model":"{fusion.judge_model}",'
        '"messages":[{"role":"user","content":"Which answer is best?"}]}'
        for ballot in ballots
    )
    return (
        f'{{"v":1,"fusion_id":"{fusion.fusion_id}","round":{number},'
        f'"tenant":"{fusion.question.tenant}","pool":"{fusion.pool_name}","calls":[{calls}],'
        f'"residency":"any","priority":"normal","seed":{seed(fusion.question)},'
        f'"deadline_at":"{fusion.deadline_text}"}}'
    )


def candidate_rows(fusion: Fusion) -> list[Row]:
    """Build the rows of `candidates`, of members and of the judge."""
    rows = [_member_row(fusion, reply) for reply in fusion.panel]
    rounds = zip(fusion.choice.rounds, fusion.asked_at, strict=True)
    for number, (ballots, asked_at) in enumerate(rounds, 1):
        rows += [_judge_row(fusion, number, ballot, asked_at) for ballot in ballots]
    return rows


def _member_row(fusion: Fusion, reply: Reply) -> Row:
    member, at = reply.member, fusion.question.at
    received_at = at + timedelta(milliseconds=reply.latency_ms)
    model, tier = member.model, member.tier
    rest = _FAILURE
    if reply.content is not None:
        usage = PROMPT_TOKENS, tokens(reply.content)
        rest = _answer_fields(f'"{reply.content}"', usage, member.cost_usd)
    head = f'"round":0,"call":"{model}","member":"{model}","model":"{model}","tier":"{tier}"'
    times = f'"started_at":"{fusion.at_text}","finished_at":"{utc_text(received_at)}"'
    body = _candidate_body(fusion.fusion_id, f"0-{model}", head, rest, times)
    error_code = None if reply.content is not None else "timeout"
    return fusion.fusion_id, 0, model, model, tier, error_code, False, 0, received_at, body


def _judge_row(fusion: Fusion, number: int, ballot: Ballot, asked_at: datetime) -> Row:
    model, call = fusion.judge_model, ballot.call
    received_at = asked_at + timedelta(milliseconds=ballot.latency_ms)
    label = _LABELS[ballot.shown.index(ballot.winner) % len(_LABELS)] * 2
    content = f'"{{\\"reason\\": \\"{REASON}\\", \\"winner\\": \\"{label}\\"}}"'
    rest = _answer_fields(content, (JUDGE_PROMPT_TOKENS, JUDGE_TOKENS), fusion.judge_usd)
    head = f'"round":{number},"call":"{call}","model":"{model}","tier":"remote"'
    times = f'"started_at":"{utc_text(asked_at)}","finished_at":"{utc_text(received_at)}"'
    body = _candidate_body(fusion.fusion_id, f"{number}-{call}", head, rest, times)
    return fusion.fusion_id, number, call, model, "remote", None, False, number, received_at, body


def _candidate_body(fusion_id: str, task: str, head: str, rest: str, times: str) -> str:
    return (
        f'{{"v":1,"task_id":"{fusion_id}-{task}","fusion_id":"{fusion_id}",{head},'
        f'"provider":"{PROVIDER}",{rest},{times}}}'
    )


def _answer_fields(content: str, usage: tuple[int, int], cost_usd: float | None) -> str:
    """The part of a candidate's body that an answer has and a failure lacks."""
    price = ""
    if cost_usd is not None:
        price = f',"cost_usd":{json_text(cost_usd)},"price_version":"{PRICE_VERSION}"'
    return (
        f'"content":{content},"finish_reason":"stop","usage":{{"prompt_tokens":{usage[0]},'
        f'"completion_tokens":{usage[1]}}}{price}'
    )
