"""What `kernel_gpu.py` has measured: kept as it comes, so that a run that was cut off goes on where it was."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plot import Panel, svg

Row = dict[str, Any]

TARGETS = {"decode": 1.05, "prefill": 1.10, "prefill statistics": 1.35}
"""At most so much of the yardstick's time."""
CONTEXTS = (512, 2048, 8192)
"""Of the plots: those that all numbers of requests have."""


class Results:
    """Rows by part, in `folder`: kernel_gpu.json, kernel_gpu.md, and plots where their rows are complete."""

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self._folder, self._about = folder, about
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "kernel_gpu.json"
        self.parts: dict[str, list[Row]] = {}
        if self._file.exists():
            known = json.loads(self._file.read_text())
            if known["about"] != about:
                raise SystemExit(f"{self._file} has results of {known['about']}")
            self.parts = known["parts"]

    def has(self, part: str, label: Row) -> bool:
        """Whether a cell was measured; one that failed with an error is measured again."""
        return any(
            "error" not in row and label.items() <= row.items() for row in self.parts.get(part, [])
        )

    def add(self, part: str, label: Row, measured: Row) -> None:
        """A cell's row, at once in the file."""
        rows = [row for row in self.parts.get(part, []) if not label.items() <= row.items()]
        self.parts[part] = [*rows, {**label, **measured}]
        self._file.write_text(json.dumps({"about": self._about, "parts": self.parts}, indent=1))

    def failed(self) -> list[Row]:
        """Rows that are wrong, or could not be had."""
        rows = [row for rows in self.parts.values() for row in rows]
        return [row for row in rows if "error" in row or row.get("passed") is False]

    def write(self) -> None:
        """The tables and the plots."""
        about = ", ".join(f"{name} {value}" for name, value in self._about.items())
        text = [f"# Kernels on {self._about['device']}", "", about]
        text += ["", *(f"- {line}" for line in self.summary())]
        for part, rows in self.parts.items():
            text += ["", f"## {part}", "", table_of(rows)]
        (self._folder / "kernel_gpu.md").write_text("\n".join(text) + "\n")
        for name, panels, label in (
            ("decode", _panels(self.parts.get("decode", []), "requests"), "log2 of the context"),
            ("prefill", _panels(self.parts.get("prefill", []), "group"), "log2 of the rows"),
        ):
            if panels:
                x = [context.bit_length() - 1 for context in CONTEXTS]
                (self._folder / f"kernel_gpu_{name}.svg").write_text(svg(x, panels, label))

    def summary(self) -> list[str]:
        """How the ratios stand to their targets, and what failed."""
        lines = []
        for name, target in TARGETS.items():
            part, _, only = name.partition(" ")
            rows = [
                row
                for row in self.parts.get(part, [])
                if "ratio" in row and (row["edit"] == "statistics") == bool(only)
            ]
            if not rows:
                continue
            ratios = [row["ratio"] for row in rows]
            within = sum(ratio <= target for ratio in ratios)
            lines.append(
                f"{name}: {within} of {len(rows)} within {target} of the yardstick's time; median"
                f" {statistics.median(ratios):.3f}, largest {max(ratios):.3f}"
            )
        times = [row["edited_ms"] for row in self.parts.get("distinct", []) if "edited_ms" in row]
        if times:
            lines.append(f"distinct edits: times within {max(times) / min(times) - 1:.1%}")
        lines.append(f"failed: {len(self.failed())}")
        return lines


def _panels(rows: Iterable[Row], by: str) -> list[Panel]:
    """The ratio over the context, a panel for each value of a column, at 128 dimensions. Of `by` requests
    with four query heads per KV head. Nothing where rows are missing."""
    chosen = [row for row in rows if "ratio" in row and row["head_dim"] == 128]
    if by == "requests":
        chosen = [row for row in chosen if row["group"] == 4]
    panels = []
    for value in sorted({row[by] for row in chosen}):
        lines: dict[str, dict[int, float]] = {}
        for row in chosen:
            if row[by] == value:
                lines.setdefault(row["edit"], {})[row["context"]] = row["ratio"]
        whole = {
            name: [line[context] for context in CONTEXTS]
            for name, line in lines.items()
            if all(context in line for context in CONTEXTS)
        }
        if whole:
            title = f"{by} {value}"
            panels.append(
                Panel(title, "time over the yardstick's", whole, 1.0, (0, 0.5, 1, 1.5, 2))
            )
    names = {tuple(panel.values) for panel in panels}
    return panels if len(names) == 1 else panels[:1]


def table_of(rows: list[Row]) -> str:
    """As Markdown; what a row does not have stays empty."""

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(cell(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
