"""What a stored fusion says about a member: quality, cost and time. Pure."""

from collections.abc import Sequence

from fusewire.analysis.ablation import Ablation, JudgeInsight, WinRates
from fusewire.contracts import ANSWERED, Answer, Candidate, Gold, Outcome
from fusewire_cli.ablate.course import StoredCase
from fusewire_cli.ablate.recomputation import Recomputation, is_same_answer
from fusewire_judge.outcome import cost
from fusewire_judge.panel.progress import arrivals_by_member, main_candidate
from fusewire_judge.scoring.gold import is_right


def make_ablation(
    old: StoredCase, member: str, without: Recomputation, win_rates: WinRates
) -> Ablation:
    """Compare an outcome with what comes out without a member.

    Args:
        old: the fusion.
        member: who is left out.
        without: what comes out.
        win_rates: of the pool's models.
    """
    outcome, prompt = old.outcome, old.case.prompt
    is_known = without.basis != "unknown"
    schema = prompt.sampling.response_schema
    is_changed = not is_same_answer(outcome, without, schema) if is_known else None
    gold = prompt.gold
    options = _options(without, gold) if gold else None
    is_right_without = None
    if gold and is_known and options is None:
        is_right_without = is_right(without.content, gold)
    candidates = [candidate for _, candidate in old.events]
    return Ablation(
        member=member,
        basis=without.basis,
        is_changed=is_changed,
        is_right=_is_answered(outcome) and is_right(outcome.content, gold) if gold else None,
        is_right_without=is_right_without,
        options=options,
        is_sole_right=_is_sole_right(outcome.answers, member) if gold else None,
        agrees=_find(outcome.answers, member).agreed,
        win_rate=_win_rate(old, without, win_rates) if is_changed else None,
        cost_usd=_cost(old, candidates, member),
        total_usd=cost(candidates),
        saved_ms=None if outcome.is_replay else saved_ms(old, member),
    )


def add_insight(old: StoredCase, insight: JudgeInsight) -> None:
    """Add what the verdicts of a labelled fusion say about its judges."""
    flags = {answer.member: answer.is_right for answer in old.outcome.answers}
    for verdict in old.outcome.verdicts:
        is_right_flags = [flags[name] for name in verdict.shown if flags.get(name) is not None]
        if not verdict.void and verdict.kind in ("listwise", "pair") and verdict.winner in flags:
            insight.add(
                sum(map(bool, is_right_flags)),
                len(is_right_flags),
                is_right=bool(flags[verdict.winner]),
            )


def _options(without: Recomputation, gold: Gold) -> tuple[int, int] | None:
    """How many of the answers that a judge would choose from are right; None if all or none is."""
    n_right = sum(is_right(answer.content, gold) for answer in without.options)
    n_shown = len(without.options)
    return (n_right, n_shown) if 0 < n_right < n_shown else None


def _is_answered(outcome: Outcome) -> bool:
    return outcome.status in ANSWERED


def _find(answers: Sequence[Answer], member: str) -> Answer:
    return next(answer for answer in answers if answer.member == member)


def _is_sole_right(answers: Sequence[Answer], member: str) -> bool:
    return [answer.member for answer in answers if answer.is_right] == [member]


def _win_rate(old: StoredCase, without: Recomputation, win_rates: WinRates) -> float | None:
    models = {member.name: member.model for member in old.case.plan.members}
    before, after = models.get(old.outcome.winner or ""), models.get(without.winner or "")
    return win_rates.rate(before, after) if before and after else None


def _cost(old: StoredCase, candidates: Sequence[Candidate], member: str) -> float | None:
    """What a member's calls cost; None if that is unknown.

    So it is of a call that never came back: it may be on the bill.
    """
    of_member = [candidate for candidate in candidates if candidate.member == member]
    if not of_member and _find(old.outcome.answers, member).status == "missing":
        return None
    return cost(of_member)


def saved_ms(old: StoredCase, member: str) -> float:
    """By how many milliseconds the panel would have closed earlier without a member.

    An estimate: from the last answer of the others to the panel's end, if all others had answered
    and the panel waited for this member. A panel that closed on a decided vote waited for nobody.
    """
    if old.outcome.closed_by not in ("complete", "quorum", "deadline"):
        return 0.0
    arrivals = arrivals_by_member(old.case)
    called_names = [a.member for a in old.outcome.answers if a.status != "unasked"]
    other_arrivals = [arrivals[name] for name in called_names if name != member]
    if member not in called_names or not other_arrivals or not all(other_arrivals):
        return 0.0
    last_other = max(main_candidate(of_member).received_at for of_member in other_arrivals)
    own = arrivals[member]
    if own and main_candidate(own).received_at <= last_other:
        return 0.0
    return max((old.closed_at - last_other).total_seconds() * 1000, 0.0)
