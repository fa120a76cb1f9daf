"""What workers sample for the metrics, and where it ends up."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from tests.kernels.paged_model import Model, layout_of

from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import HeadSet, KeyBias, KeyRanges, Rows, VisibleKeys
from heed_kernels.table import EditTable
from heed_server.engine.attention_times import AttentionTimes, DeviceLap
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.payload import Payload
from heed_server.engine.sink_samples import SinkSamples
from heed_server.metrics import Metrics

LENGTH, LAYERS = 40, 2
EVERY = HeadSet((0b1111,) * LAYERS)
BIAS = KeyBias(EVERY, Rows(), KeyRanges(((0, 1),)), 1.5, 0)


def test_one_step_in_so_many_is_timed_and_told_when_it_has_ended() -> None:
    times = AttentionTimes(every=2)
    assert times.begin("prompt") is None
    step = times.begin("generation")
    assert step is not None
    for _ in range(LAYERS):
        with step.stock:
            pass
    assert times.take() == []
    times.begin("prompt")
    ((path, phase, seconds),) = times.take()
    assert (path, phase) == ("stock", "generation") and seconds > 0
    assert times.take() == []


class Event:
    """A stand-in for CUDA's: what is recorded happens when the device goes on."""

    recorded: ClassVar[list["Event"]] = []

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        Event.recorded.append(self)

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, end: "Event") -> float:
        assert self.at is not None and end.at is not None
        return end.at - self.at


def test_steps_on_a_gpu_are_told_when_the_device_has_done_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "recorded", [])
    times = AttentionTimes(every=2, lap=DeviceLap)
    assert times.begin("generation") is None
    # Replayed in a graph: nobody times it, and the next step is due as well.
    assert times.begin("generation") is not None
    step = times.begin("prompt")
    assert step is not None
    for _ in range(LAYERS):
        with step.stock:
            pass
        with step.edited:
            pass
    assert times.begin("generation") is None
    assert times.take() == []
    for milliseconds, event in enumerate(Event.recorded):
        event.at = float(milliseconds)
    assert times.take() == [("stock", "prompt", 0.002), ("edited", "prompt", 0.002)]
    assert times.take() == []


def book(every: int = 1) -> tuple[EditedRequests, Model]:
    requests = EditedRequests(EditTable(slots=2, layers=LAYERS, query_heads=4, kv_heads=2))
    requests.sinks = SinkSamples(requests.table, every)
    return requests, Model(layout_of(32, 32), 4, 2, [LENGTH])


def run(requests: EditedRequests, model: Model, edits: tuple[Any, ...]) -> list[float]:
    """One step of the whole prompt; the samples."""
    requests.enter("a", Payload("r", 1, LENGTH, LENGTH, edits), 0)
    step = requests.plan(["a"], np.array([0, LENGTH]), np.array([0]))
    assert step is not None
    inputs = LayerInputs(
        model.query[0], model.pages, model.block_table, model.scale, None, model.layout
    )
    for layer in range(LAYERS):
        for observer in step.observers:
            observer.before_edits(layer, inputs)
    requests.leave("a", finished=True)
    assert requests.sinks is not None
    return requests.sinks.take()


def test_the_sample_is_the_edited_weight_of_the_first_token_in_the_last_row() -> None:
    requests, model = book()
    expected = [
        float(model.weights(0, (BIAS,), layer).after[:, -1, 0].mean()) for layer in range(LAYERS)
    ]
    assert run(requests, model, (BIAS,)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("every", "edits"),
    [(2, (BIAS,)), (1, (VisibleKeys(4, 16, False, 0),))],
    ids=["another step's turn", "edits that are not of logits"],
)
def test_other_rows_are_left_alone(every: int, edits: tuple[Any, ...]) -> None:
    requests, model = book(every)
    assert run(requests, model, edits) == []


def test_samples_of_all_engines_are_observed() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("cpu", registry)
    engine = {
        "edit_table_rows": 2,
        "attention_seconds": [["edited", "prompt", 0.25], ["stock", "prompt", 0.5]],
        "sink_mass": [0.25, 0.75],
    }
    metrics.polled([engine, engine])
    value = registry.get_sample_value
    assert value("heed_edit_table_rows") == 4
    edited = {"path": "edited", "phase": "prompt"}
    assert value("heed_attention_seconds_sum", edited) == 0.5
    assert value("heed_sink_mass_count") == 4 and value("heed_sink_mass_sum") == 2
