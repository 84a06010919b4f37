"""What people prefer, and whether the judge agrees. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusewire.analysis.compare.rows import HumanVote, Pair
from fusewire.analysis.measures import LEAST_N, kappa


@dataclass(frozen=True)
class HumanVotes:
    """Votes on the outcomes that are compared. They have no part in the verdict."""

    n: int
    for_a: int
    for_b: int
    ties: int
    other: int
    """For another member, or for none."""
    n_both: int
    """Votes for A, B or a tie, on outcomes whose judge chose between the two as well."""
    kappa: float | None
    """Agreement with the judge beyond chance (Cohen); None if n_both is under LEAST_N."""


def count_votes(pairs: Sequence[Pair], votes: Iterable[HumanVote]) -> HumanVotes:
    """Count the votes on pairs, and their agreement with the judge."""
    choices = {pair.a.outcome_id: pair.judgement.choice for pair in pairs}
    choices |= {pair.b.outcome_id: pair.judgement.choice for pair in pairs}
    counts: Counter[str] = Counter()
    people: list[str] = []
    judge: list[str] = []
    for vote in votes:
        if vote.outcome_id not in choices:
            continue
        counts[vote.choice] += 1
        choice = choices[vote.outcome_id]
        if vote.choice != "other" and choice is not None:
            people.append(vote.choice)
            judge.append(choice)
    return HumanVotes(
        n=counts.total(),
        for_a=counts["a"],
        for_b=counts["b"],
        ties=counts["tie"],
        other=counts["other"],
        n_both=len(people),
        kappa=kappa(people, judge) if len(people) >= LEAST_N else None,
    )
