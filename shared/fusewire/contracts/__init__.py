"""The messages on the bus. Golden JSON of every version is kept in tests/contract/."""

from fusewire.contracts.base import (
    MODES,
    PRIORITIES,
    ContractError,
    Mode,
    Part,
    Priority,
    Residency,
    Tier,
    Wire,
    contract_error,
)
from fusewire.contracts.candidate import CallFailure, Candidate, ErrorCode, FinishReason, Usage
from fusewire.contracts.outcome import Answer, Outcome, Rung, Status
from fusewire.contracts.plan import Excluded, Plan, PlannedJudge, PlannedMember
from fusewire.contracts.prompt import NAME, Message, Prompt, Sampling
from fusewire.contracts.round import Call, CallKind, Round
from fusewire.contracts.task import Task

__all__ = [
    "MODES",
    "NAME",
    "PRIORITIES",
    "Answer",
    "Call",
    "CallFailure",
    "CallKind",
    "Candidate",
    "ContractError",
    "ErrorCode",
    "Excluded",
    "FinishReason",
    "Message",
    "Mode",
    "Outcome",
    "Part",
    "Plan",
    "PlannedJudge",
    "PlannedMember",
    "Priority",
    "Prompt",
    "Residency",
    "Round",
    "Rung",
    "Sampling",
    "Status",
    "Task",
    "Tier",
    "Usage",
    "Wire",
    "contract_error",
]
