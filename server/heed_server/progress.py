"""One line that says how far a calibration is: rewritten on a terminal, now and then a new one elsewhere."""

import time
from typing import TextIO

_REWRITE_SECONDS = 0.2
_LINE_SECONDS = 10.0


class Progress:
    """Counts the runs of a stage (an item under a setting), and the prompts that they take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._stage = ""
        self._total = self._done = self._known = self._prompts = 0
        self._start = self._shown = time.monotonic()

    def begin(self, stage: str, total: int) -> None:
        """Start a stage of `total` runs."""
        self._stage, self._total = stage, total
        self._done = self._known = self._prompts = 0
        self._start = self._shown = time.monotonic()

    def answered(self, prompts: int) -> None:
        """The server has answered so many prompts more."""
        self._prompts += prompts

    def settled(self, runs: int, *, known: bool = False) -> None:
        """So many runs more are done; `known`: they stood in the journal."""
        self._done += runs
        self._known += runs if known else 0
        now = time.monotonic()
        if now - self._shown >= (_REWRITE_SECONDS if self._terminal else _LINE_SECONDS):
            self._shown = now
            self._show("" if self._terminal else "\n")

    def end(self) -> float:
        """Finish the stage; returns the prompts a second that the server answered, 0 for none."""
        self._show("\n")
        return self._rate()

    def _rate(self) -> float:
        seconds = time.monotonic() - self._start
        return self._prompts / seconds if self._prompts and seconds > 0 else 0.0

    def _show(self, end: str) -> None:
        told = f"{self._stage}: {self._done} of {self._total} runs"
        if self._known:
            told += f", {self._known} of them from the journal"
        if self._prompts:
            told += f", {self._rate():.0f} prompts/s"
        self._stream.write(f"\r{told.ljust(78)}{end}" if self._terminal else f"{told}{end}")
        self._stream.flush()
