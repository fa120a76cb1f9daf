"""How long attention takes in a worker, sampled: stock and edited, all layers of a step together. No vLLM here."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch

Phase = Literal["prompt", "generation"]
Sample = tuple[Literal["stock", "edited"], Phase, float]

SAMPLED_STEPS = 16
"""So many steps after one was timed the next one is. On a GPU that waits for a step whose attention is not in
a CUDA graph."""
SAMPLES_KEPT = 512
"""Timed steps kept until the API process takes them; the oldest go first."""


class Lap(Protocol):
    """What is spent inside, summed over its uses."""

    @property
    def used(self) -> bool:
        """Whether there was a use."""
        ...

    @property
    def arrived(self) -> bool:
        """Whether its seconds are known."""
        ...

    @property
    def seconds(self) -> float:
        """Once they have arrived."""
        ...

    def __enter__(self) -> None: ...
    def __exit__(self, *raised: object) -> None: ...


class HostLap:
    """A `Lap` where the call is the work."""

    arrived = True

    def __init__(self) -> None:
        self.used, self.seconds, self._start = False, 0.0, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self.used = True
        self.seconds += time.perf_counter() - self._start


class DeviceLap:
    """A `Lap` on a GPU: spans between events of the current stream, for which nothing waits."""

    def __init__(self) -> None:
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def used(self) -> bool:
        """See `Lap`."""
        return bool(self._spans)

    @property
    def arrived(self) -> bool:
        """See `Lap`."""
        return all(end.query() for _, end in self._spans[-1:])  # type: ignore[no-untyped-call]

    @property
    def seconds(self) -> float:
        """See `Lap`."""
        return float(sum(start.elapsed_time(end) for start, end in self._spans)) / 1e3

    def __enter__(self) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._spans.append((start, end))

    def __exit__(self, *raised: object) -> None:
        self._spans[-1][1].record()


class StepTimes:
    """The laps of one step; `NOT_TIMED` stands for those of a step that is not timed."""

    def __init__(self, stock: AbstractContextManager[None], edited: AbstractContextManager[None]):
        self.stock, self.edited = stock, edited


NOT_TIMED = StepTimes(nullcontext(), nullcontext())


class AttentionTimes:
    """The samples of one worker. lap: makes laps."""

    def __init__(self, every: int = SAMPLED_STEPS, lap: Callable[[], Lap] = HostLap) -> None:
        self._every, self._lap, self._steps = every, lap, 0
        self._laps: tuple[Phase, Lap, Lap] | None = None
        self._ended: deque[tuple[Phase, Lap, Lap]] = deque(maxlen=SAMPLES_KEPT)

    def begin(self, phase: Phase) -> StepTimes | None:
        """A step begins, and the one before has ended. None where the new one is not timed."""
        self._end()
        self._steps += 1
        if self._steps < self._every:
            return None
        stock, edited = self._lap(), self._lap()
        self._laps = (phase, stock, edited)
        return StepTimes(stock, edited)

    def take(self) -> list[Sample]:
        """Samples of the steps that have ended, once."""
        taken: list[Sample] = []
        while self._ended and all(lap.arrived for lap in self._ended[0][1:]):
            phase, stock, edited = self._ended.popleft()
            if stock.used:
                taken.append(("stock", phase, stock.seconds))
            if edited.used:
                taken.append(("edited", phase, edited.seconds))
        return taken

    def _end(self) -> None:
        laps, self._laps = self._laps, None
        if laps is not None and (laps[1].used or laps[2].used):
            self._ended.append(laps)
            self._steps = 0
