"""The search for keys from step to step on a device, against the reference and the search on the CPU."""

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import LAYERS, Model, assert_close

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.errors import EditError
from heed_kernels.reference import attention as reference
from heed_kernels.reference.search import attend_while_searching, found_by_segment
from heed_kernels.table import EditTable
from heed_kernels.triton import (
    ColumnWork,
    DeviceSearches,
    DeviceTable,
    LayerInputs,
    Room,
    StepWork,
    attend,
)

LENGTH, PROMPT = 42, 40
ON = HeadSet((0b011, 0b110))


def act(ahead, decode="frozen", threshold=8.0):
    """ACT, on keys that draw attention."""
    keys = KeyRanges(((5, 6), (20, 22)))
    counted = Rows(0, OPEN if decode == "running" else PROMPT)
    until = PROMPT if decode == "off" else OPEN
    return [
        KeyBias(HeadSet((0b111,) * LAYERS), Rows(), keys, 3.0, 0),
        FindKeys(ON, counted, threshold, 1, 4, KeyRanges(()), True, 1, True, PROMPT, ahead, until),
        MassTransfer(ON, Rows(0, until), FoundKeys(), ALL_KEYS, 0.6, Gate(), 1),
    ]


def steps_of(segments, chunk):
    """Steps of at most `chunk` rows, cut as the scheduler cuts them."""
    first = 0
    while first < LENGTH:
        most = segments.prompt if segments.ahead and first == 0 else chunk
        end = min(first + most, segments.end(first), LENGTH)
        yield first, end
        first = end


class Server:
    """What a worker does for the requests of a model, whose layers are all fed the same queries."""

    def __init__(self, model, table=None, place=0, room=1 << 20):
        """place: the first of the model's requests that steps hold."""
        self.model, self.table, self.place = model, table or model.table(), place
        columns = ColumnWork(self.table, 2 * LENGTH, 4)
        self.shared = DeviceSearches(self.table, columns, Room(room))
        self.work = StepWork(self.table, 2 * LENGTH, 4)

    def enter(self, edits):
        slot = self.table.table.insert(edits, prompt_length=PROMPT)
        return self.shared.new(slot, next(e for e in edits if isinstance(e, FindKeys)))

    def step(self, *work):
        """work: (search, first row, end row), request by request. Outputs by layer, of all rows in order."""
        model, host = self.model, self.table.table
        starts = np.cumsum([0, *(end - first for _, first, end in work)])
        items = [
            (search.slot, starts[i], end - first, first, self.place + i)
            for i, (search, first, end) in enumerate(work)
        ]
        plan = host.plan(*np.array(items).T)
        searches = [search for search, _, _ in work]
        for search, item in zip(searches, np.array(items, np.int32), strict=True):
            search.advance(item)
        self.table.sync()
        self.work.fill(plan)
        self.shared.load(plan, searches)
        rows = [model.query[self.place + i][a:b] for i, (_, a, b) in enumerate(work)]
        query = torch.cat(rows)
        caches = model.key_cache, model.value_cache, model.block_table
        outputs = []
        for layer in range(LAYERS):
            inputs = LayerInputs(query, *caches, model.scale, None)
            self.shared.observe(layer, inputs, searches)
            output = torch.full_like(query, torch.nan)
            attend(query, output, *caches, self.table, self.work, layer, model.scale, None)
            outputs.append(output)
        return outputs


def run(edits, chunk):
    """Outputs of all rows by layer, NaN where no edit is active, the search, and what was found by step."""
    server = Server(Model([LENGTH], 3, 1, head_dim=16))
    search = server.enter(edits)
    outputs, found = [], {}
    for first, end in steps_of(search.segments, chunk):
        outputs.append(server.step((search, first, end)))
        found[first] = [search.found(layer) for layer in range(LAYERS)]
    return [torch.cat(rows) for rows in zip(*outputs, strict=True)], search, found, server.model


@pytest.mark.parametrize("decode", ["frozen", "running", "off"])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_searching_request_matches_the_reference(ahead, decode):
    edits = act(ahead, decode)
    outputs, search, found, model = run(edits, LENGTH)
    tensors = [part[0].double() for part in (model.query, model.key, model.value)]
    for layer in range(LAYERS):
        by_segment = dict(found_by_segment(*tensors[:2], edits, layer, model.scale))
        assert any(map(any, by_segment.values()))
        for first, keys in by_segment.items():
            expected = {head: list(of) for head, of in enumerate(keys) if of}
            assert found[first][layer] == expected, (layer, first)
        expected = attend_while_searching(*tensors, edits, layer, model.scale)
        assert_close(outputs[layer], expected, 1e-5, f"{ahead}, {decode}, layer {layer}")
    assert search.rows == (LENGTH if decode == "running" else PROMPT)
    # Sums are kept only while they can change what is found; with "off" the prompt's last step is not over.
    if decode != "off":
        lines, keys = (4, 256) if decode == "running" else (0, 0)
        assert search._sums.shape == (lines, keys)
        assert sum(search._room._held.values()) == 8 * lines * keys


@pytest.mark.parametrize("decode", ["frozen", pytest.param("running", marks=pytest.mark.slow)])
def test_chunks_change_no_bit(decode):
    edits = act(False, decode)
    whole, search, _, _ = run(edits, LENGTH)
    cut, other, _, _ = run(edits, 17)
    for layer in range(LAYERS):
        assert torch.equal(whole[layer], cut[layer])
        assert other.mass(layer) == search.mass(layer) > 0
        assert other.found(layer) == search.found(layer)


def test_the_mass_is_what_rows_give_to_the_keys_found_for_them():
    edits = act(True, "running")
    _, search, _, model = run(edits, LENGTH)
    tensors = model.query[0].double(), model.key[0].double()
    before = reference.attention_weights(*tensors, edits, 0, model.scale, None, [[]] * 3).before
    starts = found_by_segment(*tensors, edits, 0, model.scale)
    ends = [start for start, _ in starts[1:]] + [LENGTH]
    mass = sum(
        float(before[head, start:end, list(keys)].sum())
        for (start, found), end in zip(starts, ends, strict=True)
        for head, keys in enumerate(found)
    )
    assert search.mass(0) == pytest.approx(mass, abs=1e-3)


def test_requests_of_one_step_are_counted_each_for_itself():
    """Two beside each other, and a third that goes on from what the first has counted."""
    model = Model([LENGTH] * 2, 3, 1, head_dim=16)
    causal, ahead = Server(model), Server(model, place=1)
    first, second = causal.enter(act(False)), ahead.enter(act(True))
    alone = causal.step((first, 0, 32)), ahead.step((second, 0, PROMPT))
    later = causal.step((first, 32, PROMPT))

    server = Server(model)
    one, other = server.enter(act(False)), server.enter(act(True))
    beside = server.step((one, 0, 32), (other, 0, PROMPT))
    counted = one.counted()
    server.step((one, 32, PROMPT), (other, PROMPT, LENGTH))
    third = server.enter(act(False))
    third.resume(counted)
    resumed = server.step((third, 32, PROMPT))
    for layer in range(LAYERS):
        assert torch.equal(beside[layer][:32], alone[0][layer])
        assert torch.equal(beside[layer][32:], alone[1][layer])
        assert torch.equal(resumed[layer], later[layer])
        for search in (one, third):
            assert search.found(layer) == first.found(layer)
            assert search.mass(layer) == first.mass(layer)
        assert other.found(layer) == second.found(layer)
        assert other.mass(layer) == second.mass(layer)


@pytest.mark.slow
def test_a_rank_finds_what_all_heads_find_together():
    _, whole, _, _ = run(act(True), LENGTH)
    model = Model([LENGTH], 3, 1, head_dim=16)
    parts = []
    for head in range(3):
        rank = Model([LENGTH], 1, 1, head_dim=16)
        rank.query = [model.query[0][:, head : head + 1].contiguous()]
        rank.key_cache, rank.value_cache = model.key_cache, model.value_cache
        rank.block_table = model.block_table
        host = EditTable(4, LAYERS, 3, 1, head_start=head, local_query_heads=1)
        server = Server(rank, DeviceTable(host, "cpu"))
        search = server.enter(act(True))
        server.step((search, 0, PROMPT))
        parts.append(search)
    for layer in range(LAYERS):
        together = parts[0].found(layer) | parts[1].found(layer) | parts[2].found(layer)
        assert together == whole.found(layer)
        assert sum(part.mass(layer) for part in parts) == whole.mass(layer)


def test_rows_that_a_step_left_uncounted_are_an_error_of_the_next():
    """A graph that was replayed although the step was to be looked at."""
    server = Server(Model([LENGTH], 3, 1, head_dim=16))
    search = server.enter(act(False))
    search.advance(np.array([search.slot, 0, 32, 0, 0], np.int32))
    with pytest.raises(EditError, match="not counted in layer 0"):
        search.advance(np.array([search.slot, 0, 8, 32, 0], np.int32))


def test_searches_share_a_bounded_room():
    server = Server(Model([LENGTH], 3, 1, head_dim=16), room=8 * 6 * PROMPT)
    rows = {False: np.array([0, 0, 32, 0, 0]), True: np.array([0, 0, PROMPT, 0, 0])}
    # Four lines of layers and heads are kept from step to step, and two at a time where nothing is.
    causal = server.enter(act(False))
    causal.advance(rows[False])
    server.enter(act(True)).advance(rows[True])
    another = server.enter(act(True))
    with pytest.raises(EditError, match="this request needs 640"):
        another.advance(rows[True])
    causal.close()
    server.enter(act(True)).advance(rows[True])


def test_a_search_that_finds_no_memory_is_an_error_before_the_forward(monkeypatch):
    search = Server(Model([LENGTH], 3, 1, head_dim=16)).enter(act(True))

    def grow(capacity):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(search, "_grow", grow)
    with pytest.raises(EditError, match="no memory left"):
        search.advance(np.array([search.slot, 0, PROMPT, 0, 0], np.int32))
