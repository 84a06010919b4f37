"""A panel's progress: which members were called, and which candidates came in time. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fusewire.contracts import PlannedMember
from fusewire.contracts.call_names import member_of
from fusewire_judge.model import Case, ReceivedCandidate

ArrivalsByMember = Mapping[str, Sequence[ReceivedCandidate]]
"""By member: its candidates that came in time, in the order of arrival."""


def arrivals_by_member(case: Case) -> ArrivalsByMember:
    """Group the candidates of the panel by member.

    Left out are candidates of a strategy's rounds, and those that came after a strategy had
    published its first round: by then the panel was closed (docs/decisions/0013).
    """
    panel_rounds = len(case.panel_rounds)
    arrivals: dict[str, list[ReceivedCandidate]] = {m.name: [] for m in case.plan.members}
    for (round_number, call), arrival in case.received.items():
        member = member_of(call)
        is_in_time = round_number <= panel_rounds and arrival.after_rounds <= panel_rounds
        if is_in_time and member in arrivals:
            arrivals[member].append(arrival)
    for member_arrivals in arrivals.values():
        member_arrivals.sort(key=_arrival_order)
    return arrivals


def _arrival_order(arrival: ReceivedCandidate) -> tuple[datetime, int, str]:
    return arrival.received_at, arrival.candidate.round, arrival.candidate.call


def is_frozen(case: Case) -> bool:
    """Whether a strategy has published a round, so that nothing may change the panel any more."""
    return len(case.rounds) > len(case.panel_rounds)


def split_members(case: Case) -> tuple[list[PlannedMember], list[PlannedMember]]:
    """Split the members into those that were called, and a second wave that was not, or not yet."""
    called_names = {call.name for call in case.panel_calls}
    called_members, second_wave = [], []
    for member in case.plan.members:
        if member.wave and member.name not in called_names:
            second_wave.append(member)
        else:
            called_members.append(member)
    return called_members, second_wave


def call_count(case: Case, member: PlannedMember) -> int:
    """How many calls a member was given, samples and hedges included."""
    first_calls = len(member.calls) if member.wave == 0 else 0
    return first_calls + sum(call.member == member.name for call in case.panel_calls)


def is_settled(case: Case, member: PlannedMember, arrivals: Sequence[ReceivedCandidate]) -> bool:
    """Whether a member has answered, or has failed in all of its calls."""
    has_answered = any(arrival.candidate.ok for arrival in arrivals)
    return has_answered or len(arrivals) >= call_count(case, member)


def main_candidate(arrivals: Sequence[ReceivedCandidate]) -> ReceivedCandidate:
    """The candidate that stands for a member: its first answer, else its last failure."""
    for arrival in arrivals:
        if arrival.candidate.ok:
            return arrival
    return arrivals[-1]
