"""How long attention takes in a worker, sampled: stock and edited, all layers of a step together. No vLLM here."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch

Phase = Literal["prompt", "generation"]
Sample = tuple[Literal["stock", "edited"], Phase, float]

SAMPLED_STEPS = 16
"""One step in so many is timed."""
SAMPLES_KEPT = 512
"""Samples kept until the API process takes them; the oldest go first."""


class Lap(Protocol):
    """Times what happens inside it, summed over its uses."""

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: object) -> None: ...

    def seconds(self) -> float | None:
        """None where the device has not come to its end yet."""
        ...


class HostLap:
    """Of the processor's own work."""

    def __init__(self) -> None:
        self._seconds = self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self._seconds += time.perf_counter() - self._start

    def seconds(self) -> float:
        """See `Lap`."""
        return self._seconds


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class DeviceLap:
    """Of the work that a GPU is given inside, between events on its stream: nobody waits for it."""

    def __init__(self, event: Callable[[], Any] = _event) -> None:
        self._event = event
        self._uses: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._uses.append((self._event(), self._event()))
        self._uses[-1][0].record()

    def __exit__(self, *raised: object) -> None:
        self._uses[-1][1].record()

    def seconds(self) -> float | None:
        """See `Lap`."""
        if self._uses and not self._uses[-1][1].query():
            return None
        return sum(float(begin.elapsed_time(end)) for begin, end in self._uses) / 1000


class StepTimes:
    """The laps of one step; `NOT_TIMED` stands for those of a step that is not timed."""

    def __init__(self, stock: AbstractContextManager[None], edited: AbstractContextManager[None]):
        self.stock, self.edited = stock, edited


NOT_TIMED = StepTimes(nullcontext(), nullcontext())


class AttentionTimes:
    """The samples of one worker."""

    def __init__(self, every: int = SAMPLED_STEPS, lap: Callable[[], Lap] = HostLap) -> None:
        self._every, self._lap, self._steps = every, lap, 0
        self._running: tuple[Phase, Lap, Lap] | None = None
        self._ended: deque[tuple[Phase, Lap, Lap]] = deque(maxlen=SAMPLES_KEPT)

    def begin(self, phase: Phase) -> StepTimes | None:
        """A step begins, and the one before has ended. None where the new one is not timed."""
        if self._running is not None:
            self._ended.append(self._running)
            self._running = None
        self._steps += 1
        if self._steps % self._every:
            return None
        stock, edited = self._lap(), self._lap()
        self._running = (phase, stock, edited)
        return StepTimes(stock, edited)

    def take(self) -> list[Sample]:
        """Samples of the steps that have ended, once."""
        taken: list[Sample] = []
        while self._ended:
            phase, *laps = self._ended[0]
            stock, edited = (lap.seconds() for lap in laps)
            if stock is None or edited is None:
                break
            self._ended.popleft()
            if stock:
                taken.append(("stock", phase, stock))
            if edited:
                taken.append(("edited", phase, edited))
        return taken
