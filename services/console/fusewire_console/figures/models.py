"""How models do lately. Pure: rows of views in, figures out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fusewire.analysis.measures import Rate, rate

Rows = Sequence[Mapping[str, Any]]

OPENROUTER_UNKNOWN = "-1"
"""How the API writes a price that is not known."""
_MTOK = 1_000_000


@dataclass
class CallCount:
    """Calls of a model, in one role."""

    n: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Failures by their code, the most frequent first."""
    last_at: datetime | None = None
    """When the newest outcome with an answer of it was decided."""

    @property
    def failure_rate(self) -> Rate:
        """The share that failed."""
        return rate(self.failed, self.n)


def member_calls(rows: Rows) -> dict[str, CallCount]:
    """Calls of members, by model.

    Args:
        rows: `model`, `status`, `error_code`, `n` and `last_at` of answers that were asked for.
    """
    counts: dict[str, CallCount] = defaultdict(CallCount)
    for row in sorted(rows, key=lambda row: -int(row["n"])):
        count = counts[row["model"]]
        count.n += int(row["n"])
        if row["status"] == "ok":
            count.last_at = max(filter(None, (count.last_at, row["last_at"])))
        else:
            _add_failure(count, row["error_code"] or row["status"], int(row["n"]))
    return dict(counts)


def judge_calls(rows: Rows) -> dict[str, CallCount]:
    """Verdicts that were asked for, by model; those that do not count have failed.

    Args:
        rows: `model`, `void`, `n` and `last_at` of verdicts.
    """
    counts: dict[str, CallCount] = defaultdict(CallCount)
    for row in sorted(rows, key=lambda row: -int(row["n"])):
        count = counts[row["model"]]
        count.n += int(row["n"])
        if row["void"] is None:
            count.last_at = row["last_at"]
        else:
            _add_failure(count, row["void"], int(row["n"]))
    return dict(counts)


def _add_failure(count: CallCount, code: str, n: int) -> None:
    count.failed += n
    count.errors[code] = count.errors.get(code, 0) + n


@dataclass(frozen=True)
class TokenPrice:
    """USD per million tokens; None where it is not known."""

    prompt_usd: float | None
    answer_usd: float | None


def token_prices(models: Rows) -> dict[str, TokenPrice]:
    """Prices by model, from the API's list of models.

    >>> model = {"id": "m", "pricing": {"prompt": "0.0000025", "completion": "-1"}}
    >>> token_prices([model])["m"]
    TokenPrice(prompt_usd=2.5, answer_usd=None)
    """
    return {
        model["id"]: TokenPrice(
            _per_mtok(model["pricing"]["prompt"]), _per_mtok(model["pricing"]["completion"])
        )
        for model in models
    }


def _per_mtok(price: str) -> float | None:
    return None if price == OPENROUTER_UNKNOWN else round(float(price) * _MTOK, 9)
