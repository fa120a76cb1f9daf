"""Items put to one server under a setting: batched, many requests in flight."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from heed_server.scoring.answers import answer
from heed_server.scoring.calls import Call, Kind, Setting, calls_for, calls_for_choices
from heed_server.scoring.client import Client
from heed_server.scoring.prompts import Prepared
from heed_server.scoring.scores import Score, score

_Each = TypeVar("_Each")
Done = Callable[[Sequence[Prepared], Sequence[Score]], None]
"""Told of the items that have just been scored, with their scores."""


class Scorer:
    """Scores items by what a server answers.

    batch: prompts that one request carries at most. most_tokens: of a greedy text.
    answered: told how many prompts more the server has answered.
    """

    def __init__(
        self, client: Client, *, batch: int, most_tokens: int, answered: Callable[[int], None]
    ) -> None:
        self._client = client
        self._batch = batch
        self._most_tokens = most_tokens
        self._answered = answered

    async def scores(
        self, setting: Setting, items: Sequence[Prepared], kind: Kind, done: Done
    ) -> list[Score]:
        """In the order of the items.

        Raises:
            ScoringError: the server refused a request, or is gone.
        """

        async def scored(part: Sequence[Prepared]) -> list[Score]:
            found = await self._part(setting, part, kind)
            done(part, found)
            return found

        rows = await asyncio.gather(*(scored(part) for part in self._cut(items)))
        return [each for row in rows for each in row]

    async def _part(self, setting: Setting, part: Sequence[Prepared], kind: Kind) -> list[Score]:
        answers = await self._answers([calls_for(item, kind, setting) for item in part])
        scores = [score(item, kind, said) for item, said in zip(part, answers, strict=True)]
        again = [index for index, found in enumerate(scores) if found is None]
        longer = await self._answers([calls_for_choices(part[index], setting) for index in again])
        for index, said in zip(again, longer, strict=True):
            scores[index] = score(part[index], kind, said)
        return [found or Score() for found in scores]

    async def _answers(self, calls: Sequence[Sequence[Call]]) -> list[list[Any]]:
        """Answers in the form of `calls`; those that can share a request do."""
        groups: dict[tuple[str, str, str | None], list[Call]] = defaultdict(list)
        for call in dict.fromkeys(call for row in calls for call in row):
            groups[call.interventions, call.kind, call.messages].append(call)
        parts = [part for group in groups.values() for part in self._cut(group)]
        said = await asyncio.gather(
            *(answer(self._client, part, self._most_tokens) for part in parts)
        )
        self._answered(sum(len(part) for part in parts))
        by_call: dict[Call, Any] = {}
        for part, values in zip(parts, said, strict=True):
            by_call |= zip(part, values, strict=True)
        return [[by_call[call] for call in row] for row in calls]

    def _cut(self, whole: Sequence[_Each]) -> list[Sequence[_Each]]:
        return [whole[i : i + self._batch] for i in range(0, len(whole), self._batch)]
