"""How long attention takes in a worker, sampled: stock and edited, all layers of a step together. No vLLM here."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

Phase = Literal["prompt", "generation"]
Sample = tuple[Literal["stock", "edited"], Phase, float]

SAMPLED_STEPS = 16
"""One step in so many is timed."""
SAMPLES_KEPT = 512
"""Samples kept until the API process takes them; the oldest go first."""


class Lap:
    """Seconds spent inside, summed over its uses."""

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self.seconds += time.perf_counter() - self._start


class StepTimes:
    """The laps of one step; `NOT_TIMED` stands for those of a step that is not timed."""

    def __init__(self, stock: AbstractContextManager[None], edited: AbstractContextManager[None]):
        self.stock, self.edited = stock, edited


NOT_TIMED = StepTimes(nullcontext(), nullcontext())


class AttentionTimes:
    """The samples of one worker."""

    def __init__(self, every: int = SAMPLED_STEPS) -> None:
        self._every, self._steps = every, 0
        self._laps: tuple[Phase, Lap, Lap] | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)

    def begin(self, phase: Phase) -> StepTimes | None:
        """A step begins, and the one before has ended. None where the new one is not timed."""
        self._end()
        self._steps += 1
        if self._steps % self._every:
            return None
        stock, edited = Lap(), Lap()
        self._laps = (phase, stock, edited)
        return StepTimes(stock, edited)

    def take(self) -> list[Sample]:
        """Samples of the steps that have ended, once."""
        taken = list(self._samples)
        self._samples.clear()
        return taken

    def _end(self) -> None:
        if self._laps is None:
            return
        phase, stock, edited = self._laps
        self._laps = None
        if stock.seconds:
            self._samples.append(("stock", phase, stock.seconds))
        if edited.seconds:
            self._samples.append(("edited", phase, edited.seconds))
