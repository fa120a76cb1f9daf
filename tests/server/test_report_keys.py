"""docs/api.md names every key that a report can have, and no other."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heed_interventions import METHODS, ImageSpan, ModelView, PromptView, TokenText, parse, resolve
from heed_interventions.resolve import report_of
from heed_kernels.edits import Rows
from heed_server.api.exchange import EngineRequest
from heed_server.api.reports import assemble
from heed_server.engine.books.evicting_requests import LetGo
from heed_server.engine.books.run_records import RunRecord

MODEL = ModelView(
    layers=4, query_heads=8, kv_heads=2, head_dim=16, max_length=4096,
    vision=True, hidden_size=128, sink_dims=(5, 77),
)  # fmt: skip
LENGTH = 400
EVICTING = {"keep": 0.5, "report": "full"}
FIELDS: dict[str, dict[str, Any]] = {
    "act": {},
    "zerotuning": {"gamma": 2},
    "streaming_llm": {},
    "emphasis": {"spans": [{"start": 2, "end": 5}]},
    "locore": {},
    "head_gain": {"gain": 2},
    "attention_scale": {"q_scale": 2},
    "pai": {},
    "paint": {},
    "vaf": {"layers": "all"},
    "avar": {},
    "adaptvis": {"w": 2},
    "var": {},
    "vhr": {},
    "spin": {},
    "gift": {"saliency_layer": 0, "layers": [1, 2]},
}
FOUND: dict[str, Any] = {
    "counts": {1: 2}, "positions": {1: [3, 9]}, "keys": {1: {0: [3, 9]}}, "moved": {1: 0.5},
    "heads": {1: 2}, "rows": 4,
}  # fmt: skip
TOLD: dict[str, dict[str, Any]] = {
    "vhr": {"chosen_heads": {"1": [0]}},
    "paint": {"patches": {"local": 1, "summary": 0}, "patch_keys": {"local": [3], "summary": []}},
    "var": {
        "sinks": {"1": 65}, "sink_positions": {"1": [3]}, "sinks_left_out": {"1": 1},
        "sink_keys": {"1": [3]},
    },
}  # fmt: skip
"""As `FlaggedTokens.told`, `ComparedHeads.told` and `with_patches` give it."""
SURVIVORS = [[np.arange(3, dtype=np.int32)] * MODEL.kv_heads] * MODEL.layers


def documented() -> set[str]:
    """The names in the first column of the table of reports."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    (table,) = re.findall(r"\| field \| meaning \|\n(.*?)\n\n", page, re.DOTALL)
    return {
        name for row in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }


def measured(letting_go: bool, left_out: str | None) -> dict[str, Any]:
    """A worker's report of the request's only intervention, with all that one can have."""
    record = RunRecord(LENGTH, {0: Rows()}, letting_go=0 if letting_go else None)
    if letting_go:
        record.let_go = LetGo(200.0, 6.0, None if left_out else SURVIVORS, left_out)
    else:
        record.found = {0: FOUND}
        record.detailed, record.on_images = (0,), {"masses": {"0": [[0.5, 0.2]], "1": [[0.1, 0.4]]}}
    return record.report(block_bytes=1024)


def keys_of(name: str, left_out: str | None = None) -> set[str]:
    """Keys of the report of a request with this method alone."""
    prompt = PromptView(LENGTH, lambda: TokenText("", range(0), range(0)), (ImageSpan(3, 9),))
    fields = FIELDS.get(name, EVICTING)
    methods = parse([{"method": name, "report": "full", **fields}])
    resolution = resolve(methods, MODEL, prompt)
    assert resolution.edits, resolution.reports
    letting_go = METHODS[name].evicts or name == "streaming_llm"
    worker = {0: measured(letting_go, left_out)}
    if METHODS[name].needs_image or not (letting_go or name == "act"):
        told = {0: TOLD[name]} if name in TOLD else {}
        worker = {0: RunRecord(LENGTH, {0: Rows()}, told=told).report(0)}
    (report,) = assemble(EngineRequest(resolution, LENGTH), 0, worker)
    return set(report)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_table_names_every_key_of_a_methods_report(name: str) -> None:
    assert keys_of(name) <= documented()


def test_the_table_names_nothing_that_no_report_has() -> None:
    found: set[str] = set().union(*(keys_of(name) for name in METHODS))
    found |= keys_of("knorm", left_out="too many")
    # Of a profile, and of an intervention that is neutral or left out.
    named = parse([{"method": "locore"}])[0].model_copy(update={"profile": "calm"})
    found |= {*report_of(named, "skipped", "default"), "reason"}
    assert found == documented()
