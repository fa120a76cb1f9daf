"""Scores of items out of a server's answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heed_server.scoring.calls import Kind
from heed_server.scoring.prompts import Prepared


@dataclass(frozen=True)
class Score:
    """One item under one setting; None where it says nothing.

    right: 1 when the right answer won, else 0.
    likelihood: log of the right choice's share of the choices' probability, in nats.
    entropy: of the next token in nats, with everything beyond the `answers.TOP` likeliest tokens as
        one outcome, so that it is a lower bound.
    said: the text, or the likeliest choice.
    """

    right: float | None = None
    likelihood: float | None = None
    entropy: float | None = None
    said: str | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one setting: float64 [items] each, NaN where an item has none; what was said."""

    right: np.ndarray
    likelihood: np.ndarray
    entropy: np.ndarray
    said: tuple[str | None, ...]

    @classmethod
    def of(cls, found: Sequence[Score]) -> "Scores":
        """Those of items, in their order."""
        columns = [(each.right, each.likelihood, each.entropy) for each in found]
        right, likelihood, entropy = np.array(columns, dtype=float).T
        return cls(right, likelihood, entropy, tuple(each.said for each in found))

    @classmethod
    def unknown(cls, items: int) -> "Scores":
        """None of so many items has any."""
        return cls.of([Score()] * items)

    def filled(self, other: "Scores") -> "Scores":
        """These, and the other's where there are none."""
        return Scores(
            _filled(self.right, other.right),
            _filled(self.likelihood, other.likelihood),
            _filled(self.entropy, other.entropy),
            tuple(a if a is not None else b for a, b in zip(self.said, other.said, strict=True)),
        )


def _filled(mine: np.ndarray, its: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(mine), its, mine)


def score(item: Prepared, kind: Kind, answers: Sequence[Any]) -> Score | None:
    """The score out of the answers to `calls_for`, or to `calls_for_choices`.

    None where a choice is not among the likeliest tokens: `calls_for_choices` finds its probability.
    """
    if kind == "text":
        said = str(answers[0]).strip()
        right = None if item.item.answer is None else float(said == item.item.answer.strip())
        return Score(right=right, said=said)
    if kind == "entropy":
        return Score(entropy=_entropy(answers[0]))
    if not isinstance(answers[0], dict):
        sums = [sum(row[-len(choice) :]) for row, choice in zip(answers, item.choices, strict=True)]
        return _of_choices(item, sums)
    if not all(choice[0] in answers[0] for choice in item.choices):
        return None
    chosen = [answers[0][choice[0]] for choice in item.choices]
    return _of_choices(item, chosen, _entropy(answers[0]))


def _of_choices(item: Prepared, sums: Iterable[float], entropy: float | None = None) -> Score:
    """sums: log-probabilities of the choices."""
    if item.right is None:
        return Score(entropy=entropy)
    values = np.array(list(sums))
    shares = values - np.logaddexp.reduce(values)
    likeliest = int(np.argmax(values))
    return Score(
        right=float(likeliest == item.right),
        likelihood=float(shares[item.right]),
        entropy=entropy,
        said=item.item.choices[likeliest],
    )


def _entropy(logprobs: Mapping[int, float]) -> float:
    """In nats; what the listed tokens leave over counts as one more."""
    listed = np.array(list(logprobs.values()))
    rest = max(0.0, 1.0 - float(np.exp(listed).sum()))
    entropy = -float((np.exp(listed) * listed).sum())
    return entropy - rest * float(np.log(rest)) if rest > 0 else entropy
