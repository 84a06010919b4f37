"""Whether a judge can be trusted: its biases, its slips, and who agrees with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusewire.analysis.measures import LEAST_N, Rate, kappa, rate
from fusewire.analysis.reports.rows import Row, Rows, add, amount, count, group

BiasFinding = Literal["bias", "no bias seen", "too few"]

TESTS = (
    "For each judge three rates are held against what chance would give: place, length and family."
    " Intervals are plain 95 % ones, so of 20 fair rates one seems biased by chance alone."
)


@dataclass(frozen=True)
class BiasTest:
    """How often a judge chose an answer of some kind, and how often chance would have.

    Each verdict counts, also both of a pair that was judged in both orders. Those two balance each
    other, so the interval is rather too wide than too narrow.
    """

    rate: Rate
    fair_rate: float | None
    """The mean over the verdicts of the share of answers that were of that kind: with n answers
    shown 1/n for the first or the longest, and m/n for m of the judge's family."""
    finding: BiasFinding


@dataclass(frozen=True)
class VoteAgreement:
    """How far people agree with the outcomes that a judge decided. Each vote counts."""

    rate: Rate
    """Votes for the outcome's answer, of those that are no tie."""
    kappa: float | None
    """Cohen's; None under LEAST_N, or where chance alone explains the agreement."""


@dataclass(frozen=True)
class LabelAgreement:
    """How far labels agree with a judge, on outcomes that it decided and that have a label."""

    accepted: Rate
    """Outcomes that are right."""
    oracle: Rate
    """Outcomes for which any answer is right: what a perfect judge would reach."""
    choice: Rate
    """Right outcomes, of those for which any answer is right."""


@dataclass(frozen=True)
class JudgeRow:
    """A judge in a pool."""

    pool: str
    judge: str
    verdicts: int
    place: BiasTest
    flips: Rate
    """Pairs of opposite orders in which it named another winner each."""
    length: BiasTest
    """Longer answers may be better ones: it is a bias only if they are not."""
    family: BiasTest
    """Answers of its family may be better ones, likewise."""
    repaired: Rate
    reasked: Rate
    controls: Rate
    """Times that it picked a control, which only a broken judge does."""
    votes: VoteAgreement | None
    labels: LabelAgreement | None


@dataclass(frozen=True)
class PoolFallback:
    """Outcomes of a pool that a rule decided because its judge could not."""

    pool: str
    fallbacks: Rate


@dataclass(frozen=True)
class JudgeReport:
    """`fusewire report judge`."""

    tests: str
    judges: tuple[JudgeRow, ...]
    pools: tuple[PoolFallback, ...]


@dataclass(frozen=True)
class JudgeRows:
    """What the report is made of. All but `days` have pool and judge_model."""

    biases: Rows
    """`v_judge_bias`."""
    verdicts: Rows = ()
    """Sums of `v_verdict`: fair_longer, fair_own_family, controls, control_wins."""
    votes: Rows = ()
    """`v_vote`: choice, winner, agrees."""
    labels: Rows = ()
    """Sums of `v_outcome` with a label: n, accepted, oracle (of those for which any answer is
    right) and accepted_of_oracle (of both)."""
    days: Rows = ()
    """`v_pool_day`: pool, outcomes, fallbacks."""


def judge_report(rows: JudgeRows) -> JudgeReport:
    """Check each judge of each pool."""
    keys = ("pool", "judge_model")
    verdicts, votes, labels = (
        group(part, *keys) for part in (rows.verdicts, rows.votes, rows.labels)
    )
    judges = tuple(
        _judge_row(bias_rows[0], verdicts.get(key, []), votes.get(key, []), labels.get(key, []))
        for key, bias_rows in group(rows.biases, *keys).items()
    )
    pools = tuple(
        PoolFallback(pool, rate(add(days, "fallbacks"), add(days, "outcomes")))
        for (pool,), days in group(rows.days, "pool").items()
    )
    return JudgeReport(TESTS, judges, pools)


def check_bias(count_: int, n: int, fair_rate: float | None) -> BiasTest:
    """Hold a rate against the fair one: a bias if that is outside its 95 % interval."""
    share = rate(count_, n)
    if n < LEAST_N or fair_rate is None:
        return BiasTest(share, fair_rate, "too few")
    is_fair = share.low <= fair_rate <= share.high
    return BiasTest(share, fair_rate, "no bias seen" if is_fair else "bias")


def _judge_row(bias: Row, verdicts: Rows, votes: Rows, labels: Rows) -> JudgeRow:
    presentations = count(bias, "presentations")
    longer_shown, own_shown = count(bias, "longer_shown"), count(bias, "own_family_shown")
    return JudgeRow(
        pool=str(bias["pool"]),
        judge=str(bias["judge_model"]),
        verdicts=presentations,
        place=check_bias(count(bias, "first_wins"), presentations, amount(bias, "fair_first_rate")),
        flips=rate(count(bias, "flips"), count(bias, "swapped")),
        length=check_bias(
            count(bias, "longer_wins"), longer_shown, _mean(verdicts, "fair_longer", longer_shown)
        ),
        family=check_bias(
            count(bias, "own_family_wins"),
            own_shown,
            _mean(verdicts, "fair_own_family", own_shown),
        ),
        repaired=rate(count(bias, "repaired"), presentations),
        reasked=rate(count(bias, "reasked"), presentations),
        controls=rate(add(verdicts, "control_wins"), add(verdicts, "controls")),
        votes=_vote_agreement(votes),
        labels=_label_agreement(labels),
    )


def _mean(rows: Rows, name: str, n: int) -> float | None:
    total = sum(amount(row, name) or 0.0 for row in rows)
    return total / n if rows and n else None


def _vote_agreement(rows: Rows) -> VoteAgreement | None:
    clear = [row for row in rows if row["choice"] != "tie"]
    if not clear:
        return None
    winners, choices = _ratings(clear)
    agreement = rate(sum(bool(row["agrees"]) for row in clear), len(clear))
    return VoteAgreement(agreement, kappa(winners, choices) if len(clear) >= LEAST_N else None)


def _ratings(rows: Rows) -> tuple[Sequence[str], Sequence[str]]:
    """The winners of outcomes, and what was voted for; a merge is called `fused` in both."""
    winners = [str(row["winner"] or "fused") for row in rows]
    choices = [str(row["choice"]) for row in rows]
    return winners, [
        winner if choice == "fused" else choice
        for winner, choice in zip(winners, choices, strict=True)
    ]


def _label_agreement(rows: Rows) -> LabelAgreement | None:
    n, accepted, oracle = (add(rows, name) for name in ("n", "accepted", "oracle"))
    if not n:
        return None
    # A merge can be right where no answer is, so not every accepted outcome counts as a choice.
    choices = add(rows, "accepted_of_oracle")
    return LabelAgreement(rate(accepted, n), rate(oracle, n), rate(choices, oracle))
