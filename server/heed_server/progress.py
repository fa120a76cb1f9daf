"""How far a command is: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import TextIO

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Counts the runs of a stage (an item under a setting), and the prompts that they take.

    stream: where it is shown; a bar where that is a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[None] | None = None
        self._stage = ""
        self._total = self._done = self._known = self._prompts = 0
        self._start = self._shown = time.monotonic()

    def begin(self, stage: str, total: int) -> None:
        """Start a stage of `total` runs."""
        self._stage, self._total = stage, total
        self._done = self._known = self._prompts = 0
        self._start = self._shown = time.monotonic()
        if self._stream.isatty():
            # Without smoothing, what is left is estimated by the mean rate of the stage.
            self._bar = tqdm(
                total=total,
                desc=stage,
                unit="run",
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0,
            )

    def answered(self, prompts: int) -> None:
        """The server has answered so many prompts more."""
        self._prompts += prompts

    def settled(self, runs: int, *, known: bool = False) -> None:
        """So many runs more are done; `known`: they stood in the journal."""
        self._done += runs
        self._known += runs if known else 0
        if self._bar is not None:
            if known:
                # They took no time, and are no part of the rate.
                self._bar.initial += runs
            self._bar.set_postfix_str(", ".join(self._beside()), refresh=False)
            self._bar.update(runs)
            return
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._write_line()

    def end(self) -> float:
        """Finish the stage; returns the prompts a second that the server answered, 0 for none."""
        if self._bar is None:
            self._write_line()
        else:
            self._bar.close()
            self._bar = None
        return self._rate()

    def _rate(self) -> float:
        seconds = time.monotonic() - self._start
        return self._prompts / seconds if self._prompts and seconds > 0 else 0.0

    def _beside(self) -> list[str]:
        told = [f"{self._known} of them from the journal"] if self._known else []
        return told + ([f"{self._rate():.0f} prompts/s"] if self._prompts else [])

    def _write_line(self) -> None:
        told = [f"{self._stage}: {self._done} of {self._total} runs", *self._beside()]
        self._stream.write(", ".join(told) + "\n")
        self._stream.flush()
