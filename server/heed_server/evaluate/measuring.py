"""Every setting on every task, one after the other."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heed_server.evaluate.claims import claims_of
from heed_server.evaluate.tasks import Task
from heed_server.progress import Progress
from heed_server.scoring.calls import Setting
from heed_server.scoring.comparison import Measures, measures_of
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.prompts import Prepared
from heed_server.scoring.scorer import Scorer
from heed_server.scoring.scores import Score, Scores


@dataclass(frozen=True)
class Measured:
    """One setting on one task. rate: items a second, with everything that a request takes."""

    scores: Scores
    rate: float

    def measures(self, task: Task) -> Measures:
        """Accuracy and likelihood where the items have answers, and what the answers claim to see."""
        found = dict(measures_of(self.scores))
        # What a calibration without labels goes by; here there are labels.
        found.pop("entropy", None)
        return found | dict(claims_of([item.item for item in task.items], self.scores.said))


async def measured(
    scorer: Scorer,
    progress: Progress,
    tasks: Mapping[str, Task],
    settings: Mapping[str, Setting],
) -> dict[str, dict[str, Measured]]:
    """By task and setting.

    Raises:
        ScoringError: naming the setting that the server refused.
    """
    found: dict[str, dict[str, Measured]] = {}
    for name, task in tasks.items():
        await _try(scorer, task, settings)
        progress.begin(name, len(settings) * len(task.items))
        found[name] = {
            setting: await _measured(scorer, progress, task, interventions)
            for setting, interventions in settings.items()
        }
        progress.end()
    return found


async def _try(scorer: Scorer, task: Task, settings: Mapping[str, Setting]) -> None:
    """One item under each setting, so that what is refused is refused at once; it warms the server up too."""
    for name, setting in settings.items():
        try:
            await scorer.scores(setting, task.items[:1], task.kind, lambda *_: None)
        except ScoringError as error:
            raise ScoringError(f"{name}: {error}") from error


async def _measured(scorer: Scorer, progress: Progress, task: Task, setting: Setting) -> Measured:
    def done(part: Sequence[Prepared], _: Sequence[Score]) -> None:
        progress.settled(len(part))

    began = time.perf_counter()
    scores = await scorer.scores(setting, task.items, task.kind, done)
    seconds = time.perf_counter() - began
    return Measured(Scores.of(scores), len(scores) / seconds)
