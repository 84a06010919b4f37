"""The audit log: who did what. Rows are added in the transaction of what they tell of."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, insert

from fusewire.store.tables import audit_log


@dataclass(frozen=True)
class Action:
    """Something that somebody did.

    Attributes:
        at: when.
        actor: `key:` and a key's id, `operator:` and a user's name, or `service:` and its name.
        action: a dotted name, such as `key.revoked`.
        tenant: whose matter it is; None if it is nobody's.
        target: what it was done to: an id or a name, never a secret.
        fusion_id: the fusion that it is about, if it is about one.
        detail: further fields, without texts of prompts or answers.
    """

    at: datetime
    actor: str
    action: str
    tenant: str | None = None
    target: str | None = None
    fusion_id: str | None = None
    detail: Mapping[str, Any] | None = None


def insert_action(action: Action) -> Insert:
    """Return the statement that adds an action to the log."""
    return insert(audit_log).values(
        event_id=secrets.token_hex(16),
        at=action.at,
        actor=action.actor,
        action=action.action,
        tenant=action.tenant,
        target=action.target,
        fusion_id=action.fusion_id,
        detail=None if action.detail is None else json.dumps(dict(action.detail)),
    )
