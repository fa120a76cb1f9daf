"""What a CUDA graph holds: launches with the arguments they had, which must serve any later step."""

import torch
from tests.kernels.triton.paged_model import Model

from heed_kernels.edits import (
    ALL_KEYS,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
    VisibleKeys,
)
from heed_kernels.triton import StepWork, attend, launch

ALL = HeadSet((0b111, 0b111))
SOURCES = KeyRanges(((0, 1), (9, 11)))
EDITS = (
    [
        KeyBias(ALL, Rows(), KeyRanges(((7, 30),)), 0.7, 0),
        MassTransfer(ALL, Rows(), SOURCES, KeyRanges(((20, 1095),)), 0.5, Gate(), 1),
        VisibleKeys(4, 40, False, 2),
    ],
    [HeadGain(ALL, Rows(), 0.5, 0), KeyBias(ALL, Rows(), KeyRanges(((2, 5),)), 2.0, 1)],
    [MassTransfer(ALL, Rows(), SOURCES, ALL_KEYS, 0.5, Gate(), 0)],
)
TOKENS = 8


class Graph:
    """Launches that are kept instead of made, and made whenever the graph is replayed."""

    def __init__(self) -> None:
        self._kept = []

    def keeping(self, kernel):
        graph = self

        class Kernel:
            def __getitem__(self, grid):
                return lambda *arguments, **constants: graph._kept.append(
                    (kernel[grid], arguments, constants)
                )

        return Kernel()

    def replay(self) -> None:
        for kernel, arguments, constants in self._kept:
            kernel(*arguments, **constants)


def same_bits(one, other):
    """NaN, which marks what was not written, equals NaN."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(0.0), other.nan_to_num(0.0)
    )


def test_launches_that_were_captured_once_equal_eager_steps_with_any_contents(monkeypatch):
    """Captured without work, then replayed with two waves of generated rows (five splits of each, most
    of which see nothing), with prompt rows beside some, without any transfer, and without edited rows."""
    model = Model([1100, 40], 3, 1)
    table = model.table()
    heavy, plain = model.slot(table, EDITS[0], 20), model.slot(table, EDITS[1], 35)
    whole = model.slot(table, EDITS[2], 38)
    query, output = torch.zeros(2, TOKENS, model.query_heads, model.head_dim)
    caches = model.key_cache, model.value_cache, model.block_table
    work = StepWork(table, TOKENS, 4, 32)
    rest = table, work, 0, model.scale, model.rope
    graph = Graph()
    with monkeypatch.context() as patch:
        for name in ("score_tiles", "attend_tiles", "attend_splits", "merge_splits"):
            patch.setattr(launch, name, graph.keeping(getattr(launch, name)))
        launch._launch(query, output, *caches, *rest, True, True)
    steps = (
        [(0, heavy, 1092, 1100)],
        [(1, whole, 35, 40), (0, heavy, 1095, 1096), (1, plain, 36, 38)],
        [(1, plain, 32, 40)],
        [],
    )
    waves = []
    for step in steps:
        query.fill_(torch.nan)
        if step:
            rows = torch.cat([model.query[r][first:end] for r, _, first, end in step])
            query[: len(rows)] = rows
        work.fill(model.plan(table, step)[0] if step else None)
        waves.append(work.waves)
        output.fill_(torch.nan)
        graph.replay()
        eager = torch.full_like(output, torch.nan)
        attend(query, eager, *caches, *rest)
        assert same_bits(output, eager), step
        active = sum(end - first for _, _, first, end in step)
        assert int((~eager.isnan()).all(-1).all(-1).sum()) == active
    assert waves == [2, 1, 1, 0]
