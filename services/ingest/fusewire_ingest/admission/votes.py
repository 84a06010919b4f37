"""People's votes for the answers of an outcome: parse and check them, and hash the voter. Pure."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fusewire import ids
from fusewire.contracts import ANSWERED, VOTES_BESIDE_MEMBERS
from fusewire_ingest.admission.refusal import RefusedError, unknown, validate

MOST_VOTER_CHARS = 256


class VoteRequest(BaseModel):
    """The body of `POST /v1/outcomes/{id}/votes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: str
    """A member that answered, `fused`, `tie` or `none`."""
    voter: str | None = Field(default=None, min_length=1, max_length=MOST_VOTER_CHARS)
    """Tells voters apart who share an API key. Only a hash of it is stored."""


def parse(fields: Mapping[str, Any]) -> VoteRequest:
    """Validate the fields of a JSON object as a vote. Raises RefusedError, without the voter."""
    return validate(VoteRequest, fields)


def choices(members: Sequence[str]) -> tuple[str, ...]:
    """All valid choices for an outcome, by the members that answered."""
    return tuple(dict.fromkeys((*members, *VOTES_BESIDE_MEMBERS)))


def check(choice: str, status: str, members: Sequence[str]) -> None:
    """Check a choice.

    Args:
        choice: the voter's.
        status: the outcome's.
        members: those that answered.

    Raises:
        RefusedError: the outcome has no answer, or there is no such choice.
    """
    if status not in ANSWERED:
        raise RefusedError(
            "no_answer", f"the outcome is '{status}', so there is no answer to vote for"
        )
    valid_choices = choices(members)
    if choice not in valid_choices:
        raise RefusedError("unknown_choice", unknown("choice", choice, valid_choices), "choice")


def voter_hash(pepper: bytes, tenant: str, voter: str | None, key_id: str | None) -> str:
    """The HMAC-SHA256, in hex, that stands for a voter.

    Args:
        pepper: the secret of the API keys.
        tenant: the caller's tenant; voters of two tenants are never the same.
        voter: what the caller calls the voter.
        key_id: the caller's API key, which counts as the voter if none is named.
    """
    # The kind keeps a voter who is called like a key's id apart from that key.
    if voter is not None:
        kind, name = "voter", voter
    elif key_id is not None:
        kind, name = "key", key_id
    else:
        kind, name = "local", ""
    return hmac.new(pepper, ids.digest("vote", tenant, kind, name), hashlib.sha256).hexdigest()
