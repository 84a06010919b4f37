"""Logistic models of several events over the same features, learned one observation at a time.

Pure. Each model is a logistic regression with weights at hashed places. Its steps are those of
AdaGrad (Duchi, Hazan and Singer, 2011), which are shorter at places that were seen often; what it
predicts with in the end is the mean of its weights over the newer observations (Polyak and
Juditsky, 1992), which no single one of them has moved far.
"""

import math
from collections.abc import Sequence

from fusewire_judge.learning.prompt_features import DIMENSION, Features

RATE = 0.25
"""The length of the first step at a place."""
MOST_LOGIT = 6.0


class ChanceModel:
    """The probabilities of some events, given the features of a prompt.

    Args:
        rates: how often each event occurs over all: its prediction before anything is learned.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        self._bias = [_logit(rate) for rate in rates]
        self._weights: list[list[float] | None] = [None] * DIMENSION
        """By place; None where nothing was learned."""
        self._squares: list[list[float] | None] = [None] * DIMENSION
        """By place, the sums of the squares of its gradients."""
        self._lags: list[list[float] | None] = [None] * DIMENSION
        """By place, its changes, each as often as observations came before it since `restart`."""
        self._count = 0

    def chances(self, features: Features) -> list[float]:
        """The probability of each event."""
        logits = list(self._bias)
        for place, value in features:
            weights = self._weights[place]
            if weights is not None:
                for number, weight in enumerate(weights):
                    logits[number] += value * weight
        return [_chance(logit) for logit in logits]

    def learn(self, features: Features, targets: Sequence[float | None]) -> list[float]:
        """Learn from an observation.

        Args:
            features: of the prompt.
            targets: by event, the probability that it occurred; None if nobody knows.

        Returns:
            What it had predicted before.
        """
        chances = self.chances(features)
        errors = [
            (number, chance - target)
            for number, (chance, target) in enumerate(zip(chances, targets, strict=True))
            if target is not None
        ]
        for place, value in features:
            weights, squares, lags = self._at(place)
            for number, error in errors:
                gradient = error * value
                squares[number] += gradient * gradient
                change = -RATE * gradient / math.sqrt(squares[number] + 1.0)
                weights[number] += change
                lags[number] += self._count * change
        self._count += 1
        return chances

    def restart_mean(self) -> None:
        """Begin the mean of the weights anew: what was learned until now is where it starts."""
        self._count = 0
        self._lags = [None if lags is None else [0.0] * len(lags) for lags in self._lags]

    def mean(self) -> "ChanceModel":
        """The model with the mean of the weights since `restart_mean`; it learns no more."""
        model = ChanceModel([])
        model._bias = self._bias
        for place, (weights, lags) in enumerate(zip(self._weights, self._lags, strict=True)):
            if weights is not None and lags is not None:
                model._weights[place] = [
                    weight - lag / max(self._count, 1)
                    for weight, lag in zip(weights, lags, strict=True)
                ]
        return model

    def _at(self, place: int) -> tuple[list[float], list[float], list[float]]:
        weights, squares, lags = self._weights[place], self._squares[place], self._lags[place]
        if weights is None or squares is None or lags is None:
            weights = self._weights[place] = [0.0] * len(self._bias)
            squares = self._squares[place] = [0.0] * len(self._bias)
            lags = self._lags[place] = [0.0] * len(self._bias)
        return weights, squares, lags


def _logit(rate: float) -> float:
    chance = min(max(rate, 0.01), 0.99)
    return math.log(chance / (1 - chance))


def _chance(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -MOST_LOGIT), MOST_LOGIT)))
