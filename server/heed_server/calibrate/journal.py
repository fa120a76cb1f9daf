"""What was measured, written as it comes in, so that an interrupted sweep goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class Journal:
    """JSON lines of keys and values. A context manager; one process writes one at a time.

    A line that cannot be read, as the last one of a process that was killed, counts as not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = True
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            whole = text.endswith("\n") or not text
            for line in text.splitlines():
                self._learn(line)
        self._file = self._path.open("a", encoding="utf-8")
        if not whole:
            self._file.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, key: str) -> Any:
        """The value of a key; None where it is not known."""
        return self._known.get(key)

    def add(self, values: dict[str, Any]) -> None:
        """Write values down before they are used."""
        assert self._file is not None
        lines = (json.dumps({"key": key, "value": value}) + "\n" for key, value in values.items())
        self._file.write("".join(lines))
        self._file.flush()
        self._known |= values

    def _learn(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._known[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):
            return


def digest(*parts: Any) -> str:
    """A key of plain values: equal ones, and no others, have the same."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
