"""What a member of a pool is worth: sums over outcomes that were decided again without it. Pure.

Leave-one-out: each stored outcome is decided again without one member's answer, and what comes out
is compared with what came out with it. `fusewire_cli.ablate` decides; this module adds up.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fusewire.analysis.measures import LEAST_N, Interval, paired_difference, wilson

Basis = Literal["recomputed", "kept", "estimated", "rejudged", "unknown"]
"""How an outcome without a member is known.

`recomputed`: by the judge's own rules from what is stored, exactly. `kept`: a judge chose another
member's answer, which is taken to win without this member too. `estimated`: from stored verdicts.
`rejudged`: judged again. `unknown`: only another call can tell.
"""

MOST_LOG_ODDS = 10.0
"""Of a right answer; a judge that was never wrong has no greatest likelihood."""

Verdict = Literal[
    "worth_it", "harmful", "nothing_seen", "changes_unlabelled", "needs_replay", "too_few"
]


@dataclass(frozen=True)
class Ablation:
    """One outcome, decided again without one member."""

    member: str
    basis: Basis
    is_changed: bool | None = None
    """Whether another answer comes out; None if that is unknown."""
    is_right: bool | None = None
    """Whether the stored outcome is right by the gold label; None without one."""
    is_right_without: bool | None = None
    """The same without the member; None if there is no label or the outcome is unknown."""
    options: tuple[int, int] | None = None
    """Where a judge would choose and that decides whether the outcome is right: how many of the
    answers that may win are right, and how many there are. `is_right_without` is None then."""
    is_sole_right: bool | None = None
    """Whether the member alone was right; None without a label."""
    agrees: bool | None = None
    """Whether it said what most of the others said; None if they had no majority."""
    win_rate: float | None = None
    """How often the pool's judges prefer the stored winner to the one without the member, 0 to 1;
    None if the outcome is not changed or they never compared the two."""
    cost_usd: float | None = None
    """What the member's calls cost."""
    total_usd: float | None = None
    """What all calls of the fusion cost, the judge's included."""
    saved_ms: float | None = None
    """By how much the panel would have closed earlier; None if nothing was called."""


@dataclass(frozen=True)
class Rate:
    """A share of n with its 95 % interval; the value is None if n is too small to show one."""

    n: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class MemberValue:
    """What a member is worth in the outcomes that were looked at."""

    member: str
    n: int
    """Outcomes whose plan has the member."""
    n_recomputed: int
    n_kept: int
    n_estimated: int
    n_rejudged: int
    n_unknown: int
    """See `Basis`. All others have a result without the member."""
    accuracy: Rate
    """Of labelled outcomes with a result: right with all members."""
    accuracy_without: Rate
    loss: Rate
    """Accuracy that is lost without the member, -1 to 1; paired over the same prompts."""
    changed: Rate
    """Outcomes with another answer."""
    win_loss: float | None
    """By how much the judges prefer the stored answers, -0.5 to 0.5 for each outcome with a result.
    0 for one that is not changed. An estimate; None if some changed outcome has no win rate."""
    sole_right: Rate
    agreement: Rate
    n_priced: int
    cost_per_1000_usd: float | None
    """Saved without its calls; None if the price of one is unknown."""
    cost_share: float | None
    """Its share of what the fusions cost."""
    n_timed: int
    saved_ms: float | None
    """Mean milliseconds by which the panel would close earlier."""
    last: Rate
    """Outcomes in which the panel waited for this member last."""
    verdict: Verdict

    @property
    def is_estimate(self) -> bool:
        """Whether a result is not recomputed or judged again."""
        return self.n_kept + self.n_estimated > 0


class JudgeInsight:
    """How well the judges of a pool tell right answers from wrong ones, by labelled prompts.

    A right answer has the same odds against each wrong one (Luce, "Individual Choice Behavior",
    1959). The odds are those of the greatest likelihood; 1 with fewer than 30 verdicts, as of a
    judge that cannot tell.
    """

    def __init__(self) -> None:
        self._verdicts: Counter[tuple[int, int]] = Counter()
        self._right_count = 0

    def add(self, n_right: int, n_shown: int, *, is_right: bool) -> None:
        """Add a verdict on answers some of which are right; others say nothing."""
        if 0 < n_right < n_shown:
            self._verdicts[n_right, n_shown] += 1
            self._right_count += is_right

    def probability(self, n_right: int, n_shown: int) -> float:
        """The probability that a right answer wins."""
        return _probability(self._log_odds, n_right, n_shown)

    @property
    def _log_odds(self) -> float:
        """The root of the likelihood's derivative, by bisection: it falls in the log-odds."""
        if self._verdicts.total() < LEAST_N:
            return 0.0
        low, high = -MOST_LOG_ODDS, MOST_LOG_ODDS
        for _ in range(50):
            middle = (low + high) / 2
            expected = sum(
                n * _probability(middle, n_right, n_shown)
                for (n_right, n_shown), n in self._verdicts.items()
            )
            low, high = (middle, high) if expected < self._right_count else (low, middle)
        return low


def _probability(log_odds: float, n_right: int, n_shown: int) -> float:
    weight = n_right * math.exp(log_odds)
    return weight / (weight + n_shown - n_right)


class MemberTally:
    """The sums of one member, in memory that does not grow with the outcomes."""

    def __init__(self, member: str) -> None:
        self.member = member
        self._bases: Counter[Basis] = Counter()
        self._pairs: Counter[tuple[bool, bool]] = Counter()
        self._options: Counter[tuple[bool, tuple[int, int]]] = Counter()
        self._changes: Counter[bool] = Counter()
        self._sole_rights: Counter[bool] = Counter()
        self._agreements: Counter[bool] = Counter()
        self._lasts: Counter[bool] = Counter()
        self._win_lead = 0.0
        self._n_without_win_rate = 0
        self._n_priced = 0
        self._cost_usd = 0.0
        self._n_shared = 0
        self._shared_usd = 0.0
        self._total_usd = 0.0
        self._saved_ms = 0.0

    def add(self, ablation: Ablation) -> None:
        """Add one outcome without the member."""
        self._bases[ablation.basis] += 1
        _count(self._changes, ablation.is_changed)
        _count(self._sole_rights, ablation.is_sole_right)
        _count(self._agreements, ablation.agrees)
        if ablation.is_right is not None and ablation.is_right_without is not None:
            self._pairs[ablation.is_right, ablation.is_right_without] += 1
        elif ablation.is_right is not None and ablation.options is not None:
            self._options[ablation.is_right, ablation.options] += 1
        if ablation.is_changed and ablation.win_rate is None:
            self._n_without_win_rate += 1
        elif ablation.is_changed and ablation.win_rate is not None:
            self._win_lead += ablation.win_rate - 0.5
        self._add_savings(ablation)

    def _add_savings(self, ablation: Ablation) -> None:
        if ablation.cost_usd is not None:
            self._n_priced += 1
            self._cost_usd += ablation.cost_usd
        if ablation.cost_usd is not None and ablation.total_usd is not None:
            self._n_shared += 1
            self._shared_usd += ablation.cost_usd
            self._total_usd += ablation.total_usd
        if ablation.saved_ms is not None:
            self._lasts[ablation.saved_ms > 0] += 1
            self._saved_ms += ablation.saved_ms

    def value(self, insight: JudgeInsight) -> MemberValue:
        """What the member is worth by the outcomes so far.

        Args:
            insight: of the pool's judges. Where they would choose between right and wrong answers,
                so many outcomes count as right as it says.
        """
        pairs = self._expected_pairs(insight)
        n, n_timed = self._bases.total(), self._lasts.total()
        loss = _loss(pairs)
        change_rate = _rate(self._changes)
        is_free = self._n_priced == n and self._cost_usd == 0
        is_priced = n > 0 and self._n_priced == n
        return MemberValue(
            member=self.member,
            n=n,
            n_recomputed=self._bases["recomputed"],
            n_kept=self._bases["kept"],
            n_estimated=self._bases["estimated"],
            n_rejudged=self._bases["rejudged"],
            n_unknown=self._bases["unknown"],
            accuracy=_share(pairs[True, True] + pairs[True, False], pairs),
            accuracy_without=_share(pairs[True, True] + pairs[False, True], pairs),
            loss=loss,
            changed=change_rate,
            win_loss=self._win_loss(change_rate),
            sole_right=_rate(self._sole_rights),
            agreement=_rate(self._agreements),
            n_priced=self._n_priced,
            cost_per_1000_usd=self._cost_usd / n * 1000 if is_priced else None,
            cost_share=0.0 if is_free else self._cost_share(n),
            n_timed=n_timed,
            saved_ms=self._saved_ms / n_timed if n_timed >= LEAST_N else None,
            last=_rate(self._lasts),
            verdict=give_verdict(n, loss, change_rate),
        )

    def _expected_pairs(self, insight: JudgeInsight) -> Counter[tuple[bool, bool]]:
        """How often the outcome is right with and without the member."""
        pairs = self._pairs.copy()
        for is_right in (True, False):
            counts = [
                (*options, n) for (flag, options), n in self._options.items() if flag == is_right
            ]
            expected = sum(
                n * insight.probability(n_right, n_options) for n_right, n_options, n in counts
            )
            total = sum(n for _, _, n in counts)
            pairs[is_right, True] += round(expected)
            pairs[is_right, False] += total - round(expected)
        return pairs

    def _win_loss(self, change_rate: Rate) -> float | None:
        if change_rate.n < LEAST_N or self._n_without_win_rate:
            return None
        return self._win_lead / change_rate.n

    def _cost_share(self, n: int) -> float | None:
        if self._n_shared < n or not self._total_usd:
            return None
        return self._shared_usd / self._total_usd


def give_verdict(n: int, loss: Rate, change_rate: Rate) -> Verdict:
    """Say what a member is worth, by a rule.

    - `too_few`: fewer than 30 outcomes.
    - `needs_replay`: 30 outcomes, but fewer than 30 of them have a result without the member.
    - With at least 30 labelled results, by the 95 % interval of the loss of accuracy: `worth_it`
      above 0, `harmful` below 0, `nothing_seen` if it holds 0.
    - With fewer: `nothing_seen` if no outcome is changed, else `changes_unlabelled`, as nobody
      knows whether for the better.
    """
    if n < LEAST_N:
        return "too_few"
    if change_rate.n < LEAST_N:
        return "needs_replay"
    if loss.n >= LEAST_N:
        if loss.low > 0:
            return "worth_it"
        return "harmful" if loss.high < 0 else "nothing_seen"
    return "changes_unlabelled" if change_rate.value else "nothing_seen"


class WinRates:
    """How often judges prefer one model's answers to another's.

    Args:
        counts: (model, opponent, comparisons, wins, ties), in both directions; ties count half.
    """

    def __init__(self, counts: Iterable[tuple[str, str, int, int, int]]) -> None:
        self._n: Counter[tuple[str, str]] = Counter()
        self._points: dict[tuple[str, str], float] = {}
        for model, opponent, n, wins, ties in counts:
            pair = model, opponent
            self._n[pair] += n
            self._points[pair] = self._points.get(pair, 0.0) + wins + ties / 2

    def rate(self, model: str, opponent: str) -> float | None:
        """The share of comparisons that the model won; None if the two were never compared."""
        n = self._n[model, opponent]
        return self._points[model, opponent] / n if n else None

    def best(self, models: Sequence[str]) -> str | None:
        """The model with the highest mean win rate against the others.

        None if two are equally high. A model that was compared with none of the others counts as
        their equal.
        """
        means = {model: self._mean(model, models) for model in models}
        highest = max(means.values(), default=0.0)
        leaders = [model for model, mean in means.items() if mean == highest]
        return leaders[0] if len(leaders) == 1 else None

    def _mean(self, model: str, opponents: Sequence[str]) -> float:
        rates = [self.rate(model, opponent) for opponent in opponents if opponent != model]
        known_rates = [rate for rate in rates if rate is not None]
        return sum(known_rates) / len(known_rates) if known_rates else 0.5


def _loss(pairs: Counter[tuple[bool, bool]]) -> Rate:
    observations: list[tuple[bool, bool]] = list(pairs.elements())
    with_all = [is_right for is_right, _ in observations]
    without = [is_right for _, is_right in observations]
    return _as_rate(paired_difference(with_all, without), len(observations))


def _count(counts: Counter[bool], flag: bool | None) -> None:
    if flag is not None:
        counts[flag] += 1


def _rate(counts: Counter[bool]) -> Rate:
    n = counts.total()
    return _as_rate(wilson(counts[True], n), n)


def _share(hits: int, pairs: Counter[tuple[bool, bool]]) -> Rate:
    return _as_rate(wilson(hits, pairs.total()), pairs.total())


def _as_rate(interval: Interval, n: int) -> Rate:
    return Rate(n, interval.value if n >= LEAST_N else None, interval.low, interval.high)
