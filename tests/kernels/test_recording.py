"""What is recorded of a request's attention, against dense float64 weights.

Tolerance: as for observations, a float32 weight is within a few 1e-6; sums over n rows within 1e-5
times the square root of n."""

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import Model, layout_of

from heed_kernels.beside.recording import LayerRows, Recording
from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.recording import RecordingOnCPU
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import (
    ALL_KEYS,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    Rows,
    VisibleKeys,
)
from heed_kernels.inspection import AHEAD, LOCAL_WINDOW, QUANTITIES, SLOWER, Inspection
from heed_kernels.reference import attention as reference
from heed_kernels.table import EditTable
from heed_server.engine.books.evictions_cpu import SummedColumns

QUERY_HEADS, KV_HEADS, LENGTH, RESPONSE = 6, 2, 150, 130
LAYERS, HEADS, ROWS = (0, 1), (0, 2, 5), (0, 3, 70, 71, 149)
SETS = (((0, 1),), ((5, 9), (60, 80)))
EVERY = HeadSet((0b111111, 0b101011))
EDITS = {
    "plain": (),
    "logits": (
        KeyBias(EVERY, Rows(10, 140), KeyRanges(((0, 1),)), 1.5, 0),
        KeyScale(HeadSet((0b11, 0b100000)), Rows(), KeyRanges(((4, 40),)), 0.5, 0.25, 0),
        HeadGain(EVERY, Rows(), 0.5, 1),
    ),
    "transfer": (
        MassTransfer(
            EVERY, Rows(5), KeyRanges(((0, 1), (30, 31))), ALL_KEYS, 0.6, Gate(), 0
        ),
    ),
    "rolling window": (VisibleKeys(4, 32, True, 0),),
}  # fmt: skip


def asked(**changed: object) -> Inspection:
    fields = {
        "length": LENGTH, "layers": LAYERS, "heads": HEADS, "rows": ROWS, "key_sets": SETS,
        "response": RESPONSE, "quantities": QUANTITIES,
    }  # fmt: skip
    return Inspection(**fields | changed)


def model() -> Model:
    return Model(layout_of(32, 32), QUERY_HEADS, KV_HEADS, [LENGTH])


def record(
    made: Model, inspection: Inspection, edits: tuple, cuts: list[int], ranks: int = 1
) -> dict[str, np.ndarray]:
    """All rows in chunks, on so many ranks put together."""
    parts = []
    for rank in range(ranks):
        local, local_kv = QUERY_HEADS // ranks, KV_HEADS // ranks
        table = EditTable(
            2, 2, QUERY_HEADS, KV_HEADS, head_start=rank * local, local_query_heads=local
        )
        slot = table.insert(edits)
        recording = Recording(inspection, edits, table, slot, RecordingOnCPU(table))
        pages = made.pages[:, rank * local_kv : (rank + 1) * local_kv].contiguous()
        blocks = made.block_table[0]
        query = made.query[0][:, rank * local : (rank + 1) * local].contiguous()
        for first, end in zip([0, *cuts], [*cuts, LENGTH + 1], strict=True):
            for layer in range(2):
                rows = LayerRows(
                    query[first:end], Pages.of(pages, blocks, made.layout), first, made.scale,
                    made.rope,
                )  # fmt: skip
                recording.observe(layer, rows)
                add(recording, table, rows, pages, made, layer)
        assert recording.failure is None
        parts.append(recording.arrays())
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def add(
    recording: Recording,
    table: EditTable,
    rows: LayerRows,
    pages: torch.Tensor,
    made: Model,
    layer: int,
) -> None:
    """What an observer of the step does for the column sums."""
    count = min(len(rows.query), LENGTH - rows.first)
    if not recording.sums_columns or count <= 0:
        return
    item = np.array([[0, 0, count, rows.first, 0]], np.int32)
    item[0, 0] = table.occupied.nonzero()[0][0]
    inputs = LayerInputs(
        rows.query, pages, made.block_table, rows.scale, rows.rope, made.layout
    )  # fmt: skip
    SummedColumns(table, [recording], item).before_edits(layer, inputs)


def dense(made: Model, edits: tuple) -> np.ndarray:
    """float64 [layers, heads, rows, keys]."""
    weights = [
        reference.attention_weights(
            made.query[0].double(), made.key[0].double(), edits, layer, made.scale, made.rope
        ).after[list(HEADS)]
        for layer in LAYERS
    ]
    return torch.stack(weights).numpy()


def expected(made: Model, edits: tuple) -> dict[str, np.ndarray]:
    """Every quantity by definition."""
    weights = dense(made, edits)
    q, k = np.arange(LENGTH)[:, None], np.arange(LENGTH)
    logs = weights * np.log(np.where(weights > 0, weights, 1))
    entropy = -logs.sum(axis=-1)
    least, most = AHEAD
    band = (q - k >= least) & (q - k <= most) & (q >= RESPONSE)
    normalised = (entropy[..., 1:] / np.log(np.arange(2, LENGTH + 1))).sum(axis=-1)
    response = weights[:, :, RESPONSE:]
    distance = (q - k)[RESPONSE:]
    unit = torch.nn.functional.normalize(made.query[0][list(ROWS)][:, list(HEADS)].double(), dim=2)
    cosine = torch.einsum("ihd,jhd->hij", unit, unit)
    off = (cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(dim=1)).numpy()
    return {
        "weights": weights[:, :, list(ROWS)],
        "mass": np.stack(
            [sum(weights[:, :, list(ROWS), a:b].sum(axis=-1) for a, b in keys) for keys in SETS],
            axis=-1,
        ),
        "entropy": entropy[:, :, list(ROWS)],
        "columns": weights.sum(axis=2),
        "dormancy": np.concatenate([normalised[..., None], logs.sum(axis=2)], axis=-1),
        "distance": np.stack(
            [
                (response * distance).sum(axis=-1),
                (response * np.minimum(distance, LOCAL_WINDOW)).sum(axis=-1),
            ],
            axis=-1,
        ),
        "ahead": (weights * band).sum(axis=2),
        "queries": np.tile(off / (len(ROWS) * (len(ROWS) - 1)), (2, 1)),
    }


@pytest.mark.parametrize("cuts", [[], [1, 64, 70, 129, 140]], ids=["whole", "chunks"])
@pytest.mark.parametrize("name", EDITS)
def test_every_quantity_is_what_it_is_defined_to_be(name: str, cuts: list[int]) -> None:
    made = model()
    made.query[0] = torch.cat([made.query[0], made.query[0][:1]])  # a generated row, not looked at
    actual = record(made, asked(), EDITS[name], cuts)
    made.query[0] = made.query[0][:-1]
    for quantity, values in expected(made, EDITS[name]).items():
        assert actual[quantity].dtype == np.float32
        assert actual[quantity].shape == (2, 3, *asked().shape(quantity))
        np.testing.assert_allclose(actual[quantity], values, rtol=1e-5, atol=1e-4, err_msg=quantity)
    np.testing.assert_allclose(
        actual["weights"], expected(made, EDITS[name])["weights"], rtol=0, atol=1e-5
    )


def test_ranks_have_the_same_together_as_one_alone() -> None:
    made = model()
    for edits in EDITS.values():
        alone, both = (record(made, asked(), edits, [50], ranks) for ranks in (1, 2))
        for quantity, values in alone.items():
            np.testing.assert_allclose(both[quantity], values, rtol=1e-6, atol=1e-6)


def test_a_rank_without_any_of_the_heads_has_empty_arrays() -> None:
    arrays = record(model(), asked(heads=(4,)), (), [], ranks=2)
    assert arrays["weights"].shape[1] == 1


def test_only_what_is_asked_for_is_measured() -> None:
    only = asked(quantities=("entropy",), layers=(1,))
    arrays = record(model(), only, (), [])
    assert list(arrays) == ["entropy"] and arrays["entropy"].shape == (1, 3, 5)
    assert only.values == 15


def test_rows_that_are_missing_leave_a_failure() -> None:
    made = model()
    table = made.table()
    recording = Recording(asked(), (), table, table.insert(()), RecordingOnCPU(table))
    pages = Pages.of(made.pages, made.block_table[0], made.layout)
    rows = LayerRows(made.query[0][:20], pages, 0, made.scale, made.rope)
    recording.observe(0, rows)
    assert recording.failure == "not every row of the prompt was computed"
    recording.observe(0, rows)
    assert recording.failure == "row 0 came where row 20 was to be inspected"


def test_rows_before_the_first_one_that_is_needed_may_be_missing() -> None:
    made = model()
    pages = Pages.of(made.pages, made.block_table[0], made.layout)

    def seen(first: int, **changed: object) -> Recording:
        table = made.table()
        slot = table.insert(())
        recording = Recording(asked(**changed), (), table, slot, RecordingOnCPU(table))
        for layer in LAYERS:
            rows = LayerRows(made.query[0][first:], pages, first, made.scale, made.rope)
            recording.observe(layer, rows)
        return recording

    of_rows = {"rows": (LENGTH - 1,), "quantities": ("mass",)}
    whole, hit = seen(0, **of_rows), seen(100, **of_rows)
    assert whole.failure is None and hit.failure is None
    np.testing.assert_allclose(hit.arrays()["mass"], whole.arrays()["mass"], atol=1e-6)
    assert seen(100, rows=(99,), quantities=("mass",)).failure is not None
    assert (
        seen(100, rows=(LENGTH - 1,), quantities=("mass", "entropy", "distance")).failure
        is not None
    )


def test_work_counts_the_weights_that_are_made_again() -> None:
    shape = len(LAYERS) * len(HEADS)
    some = asked(quantities=("mass", "columns"))
    assert some.work(()) == some.work(EDITS["logits"]) == shape * sum(row + 1 for row in ROWS)
    assert some.work(EDITS["rolling window"]) == SLOWER * some.work(())
    every = LENGTH * (LENGTH + 1) // 2
    assert some.work(EDITS["transfer"]) == SLOWER * shape * every, "columns behind a transfer too"
    assert asked(quantities=("dormancy",)).work(()) == shape * every
    assert asked(quantities=("queries", "columns")).work(()) == 0
