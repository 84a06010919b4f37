"""One outcome: all answers side by side, the verdicts on them, and how it came about."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fusewire.contracts import ANSWERED, VOTES_BESIDE_MEMBERS
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.figures import (
    analysis,
    differences,
    excerpts,
    explanations,
    origins,
    timeline,
    verdicts,
)
from fusewire_console.figures.differences import TextComparison
from fusewire_console.pages import page
from fusewire_console.site import Site
from fusewire_console.views import Rows

MOST_EVENTS = 300
MOST_MESSAGES = 12
"""Messages of a prompt that are shown, the last ones."""
FUSED = "fused"
"""In an address: the outcome's own answer. No member may be called so."""
_ID = re.compile(r"[0-9a-z]{1,64}")
_START = f"substr(content, 1, {excerpts.MOST_CHARS}) AS content, length(content) AS chars"
OUTCOME_SQL = f"""SELECT outcome_id, is_degraded, degraded_reasons, status, batch_id, custom_id,
  tenant, submitted_at, finished_at, pool, mode, config_hash, reason, judge_model, winner,
  winner_model, n_asked, n_answered, is_fallback, fallback_reason, agreement, verdict_parse,
  swap_consistent, latency_ms, panel_ms, judge_ms, tokens_in, tokens_out, cost_panel_usd,
  cost_judge_usd, cost_usd, price_version, accepted, error, answer_kind, closed_by, missing_weight,
  guard, hedges, is_replay, cost_late_usd,
  substr(tool_calls, 1, {excerpts.MOST_CHARS}) AS tool_calls, {_START}
  FROM v_outcome WHERE outcome_id = :id AND {{tenant}}"""
ANSWERS_SQL = f"""SELECT member, model, provider, tier, shown_position, status, error_code,
  error_status, provider_code, provider_param, attempts, latency_ms, tokens_in, tokens_out,
  cost_usd, is_winner, weight, agreed, vote_group, is_right, {_START}
  FROM v_answer WHERE outcome_id = :id ORDER BY member"""
VERDICTS_SQL = """SELECT call, kind, judge_model, winner, verdict_parse, void, is_consistent, shown,
  swap_of, is_by_margin, substr(output, 1, 20000) AS output
  FROM v_verdict WHERE outcome_id = :id ORDER BY call"""
EVENTS_SQL = f"""SELECT at, event, round, call, model, detail FROM v_event
  WHERE outcome_id = :id AND event <> 'voted' ORDER BY at LIMIT {MOST_EVENTS}"""
VOTES_SQL = (
    "SELECT choice, COUNT(*) AS n FROM v_vote WHERE outcome_id = :id AND {tenant} GROUP BY 1"
)

STATEMENTS = (OUTCOME_SQL, ANSWERS_SQL, VERDICTS_SQL, EVENTS_SQL, VOTES_SQL)
"""All that the page reads from views."""


@dataclass(frozen=True)
class TextStart:
    """The beginning of a text, as far as the page shows it."""

    text: str
    chars: int
    """Of the whole text."""
    comparison: TextComparison | None = None
    """With the outcome's own answer; None if one of the two is cut or has too many words."""

    @property
    def is_cut(self) -> bool:
        """Whether there is more of it."""
        return len(self.text) < self.chars


@dataclass(frozen=True)
class VoteReply:
    """What became of a vote that was just given."""

    choice: str
    status: int
    error: str | None = None
    is_changed: bool = False


@dataclass(frozen=True)
class _StoredFusion:
    """What is stored of a fusion."""

    fusion: Mapping[str, Any] | None
    """As the API shows it; None if it does not show it to this visitor."""
    notice: str | None
    """Why the API does not show it, where it is no matter of the tenant."""
    outcome: Mapping[str, Any] | None
    """None while it runs."""
    answers: Rows = field(default_factory=list)
    verdicts: Rows = field(default_factory=list)
    events: Rows = field(default_factory=list)
    votes: Mapping[str, int] = field(default_factory=dict)
    prompt: Mapping[str, Any] | None = None


def routes(site: Site) -> list[Route]:
    """`/outcomes/{id}`, its texts and its votes."""

    async def show(request: Request, visitor: Visitor) -> Response:
        return await _show(site, visitor, request)

    async def vote(request: Request, visitor: Visitor) -> Response:
        outcome_id = _id(request)
        choice = str((await request.form()).get("choice", ""))
        reply = await _vote(site, visitor, outcome_id, choice)
        return await _show(site, visitor, request, reply)

    async def return_from_votes(request: Request, _visitor: Visitor) -> Response:
        return RedirectResponse(f"/outcomes/{_id(request)}#votes", 303)

    async def text(request: Request, visitor: Visitor) -> Response:
        return await _text(site, visitor, _id(request), request.path_params["member"])

    async def raw(request: Request, visitor: Visitor) -> Response:
        outcome_id = _id(request)
        fusion = await site.api.get(visitor.key, f"/v1/fusions/{outcome_id}")
        return JSONResponse(fusion, headers=_attachment(f"{outcome_id}.json"))

    return [
        page.route(site, "/outcomes/{id}", show),
        page.route(site, "/outcomes/{id}/votes", vote, method="POST"),
        page.route(site, "/outcomes/{id}/votes", return_from_votes),
        page.route(site, "/outcomes/{id}/answers/{member}.txt", text),
        page.route(site, "/outcomes/{id}/fusion.json", raw),
    ]


def _id(request: Request) -> str:
    outcome_id = request.path_params["id"]
    if not _ID.fullmatch(outcome_id):
        _not_found()
    return str(outcome_id)


def _not_found() -> NoReturn:
    raise HTTPException(404)


def _attachment(name: str) -> dict[str, str]:
    return {"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"}


# -- reading ----------------------------------------------------------------------------------


async def _read(site: Site, visitor: Visitor, outcome_id: str) -> _StoredFusion:
    """Read what is stored of a fusion. Raises HTTPException 404 without one of this visitor's."""
    values = {"id": outcome_id}
    # The API first: when it has the outcome, the view has it too.
    fusion, notice = await _ask(site, visitor, f"/v1/fusions/{outcome_id}")
    found_rows = await site.views.of_tenant(visitor, OUTCOME_SQL, values)
    outcome = found_rows[0] if found_rows else None
    if outcome is None and notice:
        raise ApiError(503, "unavailable", notice)
    if outcome is None and fusion is None:
        _not_found()
    # It is this visitor's, so its rows may be read from views without a tenant.
    answers, verdict_rows, events, votes, (prompt, _) = await asyncio.gather(
        site.views.of_fusion(outcome_id, ANSWERS_SQL),
        site.views.of_fusion(outcome_id, VERDICTS_SQL),
        site.views.of_fusion(outcome_id, EVENTS_SQL),
        site.views.of_tenant(visitor, VOTES_SQL, values),
        _ask(site, visitor, f"/v1/fusions/{outcome_id}/prompt"),
    )
    return _StoredFusion(
        fusion=fusion,
        notice=notice,
        outcome=outcome,
        answers=sorted(answers, key=lambda row: (not row["is_winner"], row["status"] != "ok")),
        verdicts=verdict_rows,
        events=events,
        votes={row["choice"]: row["n"] for row in votes},
        prompt=prompt,
    )


async def _ask(
    site: Site, visitor: Visitor, path: str
) -> tuple[Mapping[str, Any] | None, str | None]:
    """Ask the API. Returns the reply, or None and why, if that is no matter of the tenant."""
    try:
        return await site.api.get(visitor.key, path), None
    except ApiError as exc:
        if exc.status == 401:
            raise
        return None, None if exc.status == 404 else exc.message


async def _vote(site: Site, visitor: Visitor, outcome_id: str, choice: str) -> VoteReply:
    path = f"/v1/outcomes/{outcome_id}/votes"
    try:
        # The key is the voter; without keys, all of this machine are one.
        vote = await site.api.post(visitor.key, path, {"choice": choice})
    except ApiError as exc:
        if exc.status in (401, 404):
            raise
        return VoteReply(choice, exc.status, exc.message)
    return VoteReply(vote["choice"], 200, is_changed=vote["is_changed"])


async def _text(site: Site, visitor: Visitor, outcome_id: str, member: str) -> Response:
    """A whole answer as a file."""
    sql = "SELECT content FROM v_outcome WHERE outcome_id = :id AND {tenant}"
    values = {"id": outcome_id}
    rows = await site.views.of_tenant(visitor, sql, values)
    if rows and member != FUSED:
        sql = "SELECT member, content FROM v_answer WHERE outcome_id = :id"
        answers = await site.views.of_fusion(outcome_id, sql)
        rows = [row for row in answers if row["member"] == member]
    if not rows or rows[0]["content"] is None:
        _not_found()
    return PlainTextResponse(rows[0]["content"], headers=_attachment(f"{outcome_id}-{member}.txt"))


# -- the page ---------------------------------------------------------------------------------


async def _show(
    site: Site, visitor: Visitor, request: Request, vote: VoteReply | None = None
) -> Response:
    record = await _read(site, visitor, _id(request))
    fusion, outcome = record.fusion, record.outcome
    texts = _texts(record)
    context = {
        "fusion": fusion,
        "notice": record.notice,
        "outcome_id": _id(request),
        "outcome": outcome,
        "submitted": datetime.fromisoformat(fusion["submitted_at"]) if fusion else None,
        "answers": record.answers,
        "messages": _messages(record.prompt),
        "n_messages": len(record.prompt["messages"]) if record.prompt else 0,
        "has_late": any(event["event"] == "late" for event in record.events),
        "texts": texts,
        "tool_calls": _tool_calls(fusion),
        "is_deleted": _is_deleted(record),
        "reasons": explanations.degraded(_reasons(outcome)),
        "ending": explanations.ending(outcome) if outcome else [],
        "explain": explanations.code,
        "origins": _origins(record),
        "analysis": analysis.lines(fusion.get("analysis")) if fusion else [],
        "verdicts": verdicts.pairs(record.verdicts),
        "timeline": timeline.draw(record.events),
        "choices": _choices(record, visitor),
        "votes": record.votes,
        "vote": vote,
        "raw": excerpts.short_json(fusion) if fusion else None,
    }
    name = "outcome_parts.html" if page.is_part(request) else "outcome.html"
    return page.render(site, name, visitor, status=vote.status if vote else 200, **context)


def _reasons(outcome: Mapping[str, Any] | None) -> Sequence[str]:
    return json.loads(outcome["degraded_reasons"] or "[]") if outcome else []


def _is_deleted(record: _StoredFusion) -> bool:
    """Whether the texts of an outcome are deleted, of which the figures are kept."""
    outcome = record.outcome
    if outcome is None:
        return False
    has_answer = outcome["content"] is not None or outcome["tool_calls"]
    return outcome["status"] in ANSWERED and not has_answer


def _messages(prompt: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    return list(prompt["messages"])[-MOST_MESSAGES:] if prompt else []


def _texts(record: _StoredFusion) -> dict[str, TextStart]:
    """All texts of the page by member, `fused` and `message N`, as far as they fit on it."""
    whole_texts = {name: text for name, text in _whole_texts(record) if text[0] is not None}
    starts = excerpts.cut([text for text, _ in whole_texts.values()])
    texts = {
        name: TextStart(start, chars)
        for start, (name, (_, chars)) in zip(starts, whole_texts.items(), strict=True)
    }
    reference = texts.get(FUSED)
    for member in {row["member"] for row in record.answers} & set(texts):
        texts[member] = _compare(texts[member], reference)
    return texts


def _tool_calls(fusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """The tool calls of answers by member, which only the API has."""
    answers = fusion.get("answers", ()) if fusion else ()
    return {answer["member"]: answer["tool_calls"] for answer in answers if answer["tool_calls"]}


def _whole_texts(record: _StoredFusion) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Each text with its length, as far as it was read; None if there is none."""
    if record.outcome:
        yield FUSED, (record.outcome["content"], record.outcome["chars"])
    for row in record.answers:
        yield row["member"], (row["content"], row["chars"])
    for number, message in enumerate(_messages(record.prompt)):
        yield f"message {number}", (message["content"], len(message["content"]))


def _compare(text: TextStart, reference: TextStart | None) -> TextStart:
    if reference is None or reference.is_cut or text.is_cut:
        return text
    return replace(text, comparison=differences.compare(text.text, reference.text))


def _origins(record: _StoredFusion) -> list[origins.MergedPart] | None:
    """The sentences of a merge with the members whose texts are closest; None if it is none."""
    outcome = record.outcome
    if outcome is None or outcome["status"] != "fused" or outcome["winner"]:
        return None
    if not outcome["content"] or outcome["chars"] > excerpts.MOST_CHARS:
        return None
    return origins.trace(
        outcome["content"], {row["member"]: row["content"] or "" for row in record.answers}
    )


def _choices(record: _StoredFusion, visitor: Visitor) -> list[str]:
    """What this visitor may vote for; empty if it may not."""
    outcome = record.outcome
    may_vote = record.fusion is not None and "submit" in visitor.scopes
    if not may_vote or outcome is None or outcome["status"] not in ANSWERED:
        return []
    members = [row["member"] for row in record.answers if row["status"] == "ok"]
    return [*members, *VOTES_BESIDE_MEMBERS]
