"""People's votes for the answers of an outcome."""

import functools
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire_ingest.access import Caller
from fusewire_ingest.admission import votes as admission
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller, SubmitCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.votes import StoredVote, Vote, Votes

log = structlog.get_logger(__name__)

BODY_BYTES = 8 * 1024


def routes(dependencies: Dependencies) -> APIRouter:
    """`/v1/outcomes/{id}/votes`; an outcome's id is its fusion's."""
    router = APIRouter(tags=["votes"])
    votes = Votes(dependencies.store)
    # Read at the first vote: without API keys, nothing else needs it.
    load_pepper = functools.cache(lambda: pepper(dependencies.settings))

    @router.post(
        "/outcomes/{outcome_id}/votes",
        summary="Vote for the best answer of an outcome, or change the vote",
        status_code=201,
        openapi_extra=schemas.body("VoteRequest"),
        responses={**schemas.reply("Vote", status=201), **schemas.reply("Vote")},
    )
    async def create(request: Request, outcome_id: str, caller: SubmitCaller) -> Response:
        """201 for a voter's first vote, 200 for a changed or repeated one.

        Each voter has one vote for an outcome. Without a `voter`, the API key is the voter.
        """
        parsed_request = admission.parse(await _read_body(request))
        vote = Vote(
            fusion_id=_check_id(outcome_id),
            voter_hash=_voter_hash(load_pepper(), caller, parsed_request.voter),
            choice=parsed_request.choice,
            key_id=caller.key_id,
            voted_at=dependencies.clock(),
        )
        stored_vote = await votes.store(caller.tenant, vote)
        if stored_vote is None:
            raise _not_found_error(outcome_id)
        if stored_vote.is_new or stored_vote.is_changed:
            log.info(
                "ingest.vote_stored",
                fusion_id=outcome_id,
                choice=stored_vote.choice,
                is_changed=stored_vote.is_changed,
            )
        return JSONResponse(_reply(outcome_id, stored_vote), 201 if stored_vote.is_new else 200)

    @router.get(
        "/outcomes/{outcome_id}/votes",
        summary="How many voted for each answer of an outcome",
        responses=schemas.reply("VoteCounts"),
    )
    async def count(outcome_id: str, caller: ReadCaller) -> Response:
        counts = await votes.counts(caller.tenant, _check_id(outcome_id))
        if counts is None:
            raise _not_found_error(outcome_id)
        reply: replies.votes.VoteCounts = {
            "object": "vote_counts",
            "outcome_id": outcome_id,
            "n": sum(counts.values()),
            "counts": counts,
        }
        return JSONResponse(reply)

    return router


async def _read_body(request: Request) -> dict[str, Any]:
    try:
        return await bodies.json_object(request, BODY_BYTES)
    except RefusedError as exc:
        if exc.code != "prompt_too_large":
            raise
    # A vote's limit cannot be raised in the configuration, as that of a prompt can.
    message = f"a vote has at most {BODY_BYTES} bytes; send `choice` and `voter`, and no more"
    raise HttpError(413, "vote_too_large", message)


def _voter_hash(secret: bytes, caller: Caller, voter: str | None) -> str:
    # A key that replaces another is the same voter.
    return admission.voter_hash(secret, caller.tenant, voter, caller.first_key_id)


def _reply(outcome_id: str, vote: StoredVote) -> replies.votes.Vote:
    return {
        "object": "vote",
        "outcome_id": outcome_id,
        "choice": vote.choice,
        "created_at": vote.created_at.isoformat(),
        "changed_at": vote.changed_at.isoformat(),
        "is_new": vote.is_new,
        "is_changed": vote.is_changed,
    }


def _check_id(outcome_id: str) -> str:
    """The id. Raises HttpError for one with a NUL, which PostgreSQL cannot look up."""
    if "\x00" in outcome_id:
        raise _not_found_error(outcome_id)
    return outcome_id


def _not_found_error(outcome_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no outcome '{outcome_id[:64]}'")
