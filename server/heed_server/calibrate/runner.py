"""Settings run over items, nothing twice: what the journal knows is not asked again."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from heed_interventions.errors import quote
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.journal import Journal, digest
from heed_server.progress import Progress
from heed_server.scoring.calls import Kind, Setting
from heed_server.scoring.client import Client
from heed_server.scoring.prompts import Prepared
from heed_server.scoring.scorer import Scorer
from heed_server.scoring.scores import Score, Scores


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
        self._scorer = Scorer(
            client, batch=batch, most_tokens=most_tokens, answered=progress.answered
        )
        self._journal = journal
        self._progress = progress
        self._served = served
        self._most_tokens = most_tokens
        self.rates: dict[str, float] = {}

    async def measure(
        self, what: str, settings: Sequence[Setting], items: Sequence[Prepared], kind: Kind
    ) -> list[Scores]:
        """The scores of each setting on the items, in their orders.

        what: the stage's name, under which prompts a second are kept in `rates`.

        Raises:
            ScoringError: the server refused a request, or is gone.
        """
        self._progress.begin(what, len(settings) * len(items))
        found = await asyncio.gather(*(self._measure(setting, items, kind) for setting in settings))
        rate = self._progress.end()
        if rate:
            self.rates[what] = round(rate, 1)
        return [Scores.of(row) for row in found]

    async def _measure(
        self, setting: Setting, items: Sequence[Prepared], kind: Kind
    ) -> list[Score]:
        keys = [self._key(setting, item, kind) for item in items]
        known = {
            key: recorded(found) for key in keys if (found := self._journal.find(key)) is not None
        }
        self._progress.settled(sum(key in known for key in keys), known=True)
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}

        def done(part: Sequence[Prepared], scores: Sequence[Score]) -> None:
            keys = [self._key(setting, item, kind) for item in part]
            self._journal.add({key: asdict(score) for key, score in zip(keys, scores, strict=True)})
            self._progress.settled(len(part))

        scores = await self._scorer.scores(setting, list(missing.values()), kind, done)
        known |= zip(missing, scores, strict=True)
        return [known[key] for key in keys]

    def _key(self, setting: Setting, item: Prepared, kind: Kind) -> str:
        asked = (
            item.item.answer,
            item.item.emphasise,
            # Tokens do not tell one image from another.
            item.item.messages if item.item.has_images else None,
            self._most_tokens if kind == "text" else 0,
        )
        return digest(self._served, kind, list(setting), item.prompt, item.choices, asked)


def recorded(value: Any) -> Score:
    """A score out of a journal. Raises `CalibrationError` where it is none."""
    names = {field.name for field in fields(Score)}
    if (
        not isinstance(value, dict)
        or set(value) != names
        or not all(found is None or type(found) is _KINDS[name] for name, found in value.items())
    ):
        raise CalibrationError(
            f"the journal holds {quote(value)} where a score should stand: delete the journal, or "
            "name another with --journal"
        )
    return Score(**value)


_KINDS = {"right": float, "likelihood": float, "entropy": float, "said": str}
