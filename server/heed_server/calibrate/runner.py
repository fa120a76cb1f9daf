"""Settings run over items: batched, many requests in flight, nothing twice."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heed_server.calibrate.client import Client
from heed_server.calibrate.journal import Journal, digest
from heed_server.calibrate.prompts import Prepared
from heed_server.calibrate.scoring import (
    Call,
    Intervention,
    Kind,
    Score,
    answer,
    calls_for,
    calls_for_choices,
    recorded,
    score,
)
from heed_server.progress import Progress


@dataclass(frozen=True)
class Scores:
    """The scores of one setting: float64 [items] each, NaN where an item has none."""

    right: np.ndarray
    likelihood: np.ndarray
    entropy: np.ndarray

    @classmethod
    def unknown(cls, items: int) -> "Scores":
        """None of so many items has any."""
        return cls(*np.full((3, items), np.nan))

    def filled(self, other: "Scores") -> "Scores":
        """These, and the other's where there are none."""
        return Scores(
            *(
                np.where(np.isnan(mine), its, mine)
                for mine, its in (
                    (self.right, other.right),
                    (self.likelihood, other.likelihood),
                    (self.entropy, other.entropy),
                )
            )
        )


class Runner:
    """Runs settings over items against one server.

    served: a digest of the model and of what serves it, a part of every key in the journal.
    batch: prompts that one request carries at most. most_tokens: of a greedy text.
    """

    def __init__(
        self,
        client: Client,
        journal: Journal,
        progress: Progress,
        *,
        served: str,
        batch: int,
        most_tokens: int,
    ) -> None:
        self._client = client
        self._journal = journal
        self._progress = progress
        self._served = served
        self._batch = batch
        self._most_tokens = most_tokens
        self.rates: dict[str, float] = {}

    async def measure(
        self,
        what: str,
        settings: Sequence[Intervention | None],
        items: Sequence[Prepared],
        kind: Kind,
    ) -> list[Scores]:
        """The scores of each setting on the items, in their orders.

        what: the stage's name, under which prompts a second are kept in `rates`. None is plain.

        Raises:
            CalibrationError: the server refused a request, or is gone.
        """
        self._progress.begin(what, len(settings) * len(items))
        found = await asyncio.gather(*(self._measure(setting, items, kind) for setting in settings))
        rate = self._progress.end()
        if rate:
            self.rates[what] = round(rate, 1)
        return [_scores(row) for row in found]

    async def _measure(
        self, setting: Intervention | None, items: Sequence[Prepared], kind: Kind
    ) -> list[Score]:
        keys = [self._key(setting, item, kind) for item in items]
        known = {
            key: recorded(found) for key in keys if (found := self._journal.find(key)) is not None
        }
        self._progress.settled(sum(key in known for key in keys), known=True)
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        pairs = list(missing.items())
        parts = [pairs[i : i + self._batch] for i in range(0, len(pairs), self._batch)]
        for scored in await asyncio.gather(*(self._part(setting, part, kind) for part in parts)):
            known |= scored
        return [known[key] for key in keys]

    async def _part(
        self, setting: Intervention | None, part: Sequence[tuple[str, Prepared]], kind: Kind
    ) -> dict[str, Score]:
        answers = await self._answers([calls_for(item, kind, setting) for _, item in part])
        scores = [score(item, kind, said) for (_, item), said in zip(part, answers, strict=True)]
        again = [index for index, found in enumerate(scores) if found is None]
        longer = await self._answers([calls_for_choices(part[i][1], setting) for i in again])
        for index, said in zip(again, longer, strict=True):
            scores[index] = score(part[index][1], kind, said)
        done = {key: found or Score() for (key, _), found in zip(part, scores, strict=True)}
        self._journal.add({key: asdict(found) for key, found in done.items()})
        self._progress.settled(len(done))
        return done

    async def _answers(self, calls: Sequence[Sequence[Call]]) -> list[list[Any]]:
        """Answers in the form of `calls`; those that can share a request do."""
        groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in dict.fromkeys(call for row in calls for call in row):
            groups[call.interventions, call.kind].append(call)
        parts = [
            group[i : i + self._batch]
            for group in groups.values()
            for i in range(0, len(group), self._batch)
        ]
        said = await asyncio.gather(
            *(answer(self._client, part, self._most_tokens) for part in parts)
        )
        self._progress.answered(sum(len(part) for part in parts))
        by_call: dict[Call, Any] = {}
        for part, values in zip(parts, said, strict=True):
            by_call |= zip(part, values, strict=True)
        return [[by_call[call] for call in row] for row in calls]

    def _key(self, setting: Intervention | None, item: Prepared, kind: Kind) -> str:
        asked = (item.item.answer, item.item.emphasise, self._most_tokens if kind == "text" else 0)
        return digest(self._served, kind, setting, item.prompt, item.choices, asked)


def _scores(row: Iterable[Score]) -> Scores:
    columns = [(found.right, found.likelihood, found.entropy) for found in row]
    values = np.array(columns, dtype=float).T
    return Scores(*values)
