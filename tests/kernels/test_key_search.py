"""The search for keys from step to step, against the reference, on the CPU."""

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import Model, assert_close, layout_of
from tests.kernels.test_cpu_attention import every_head
from tests.kernels.test_cpu_primitives import on_some

from heed_kernels.cpu import KeySearch, LayerInputs, search_keys
from heed_kernels.cpu.search import Counted
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.errors import EditError
from heed_kernels.reference.search import attend_while_searching, found_by_segment

LENGTH, PROMPT = 150, 129


def act(ahead, decode="frozen", prompt=PROMPT, threshold=8.0, query_heads=6):
    """ACT, on keys that draw attention."""
    on = on_some(query_heads)
    keys = KeyRanges(((5, 6), (40, 42), (77, 78)))
    counted = Rows(0, OPEN if decode == "running" else prompt)
    until = prompt if decode == "off" else OPEN
    return [
        KeyBias(every_head(query_heads), Rows(), keys, 3.0, 0),
        FindKeys(on, counted, threshold, 1, 4, KeyRanges(()), True, 1, True, prompt, ahead, until),
        MassTransfer(on, Rows(0, until), FoundKeys(), ALL_KEYS, 0.6, Gate(), 1),
    ]


def steps_of(segments, length, chunk):
    """Steps of at most `chunk` rows, cut as the scheduler cuts them."""
    first = 0
    while first < length:
        most = segments.prompt if segments.ahead and first == 0 else chunk
        end = min(first + most, segments.end(first), length)
        yield first, end
        first = end


def run(model, edits, layer, chunk, length=LENGTH):
    """Outputs of all rows, the search, and the keys found before each step's end."""
    table = model.table()
    slot = table.insert(edits, prompt_length=PROMPT)
    search = KeySearch(table, slot, next(e for e in edits if isinstance(e, FindKeys)))
    outputs, found = [], {}
    for first, end in steps_of(search.segments, length, chunk):
        query = model.query[0][first:end].contiguous()
        search.advance(np.array([slot, 0, end - first, first, 0], np.int32))
        inputs = LayerInputs(
            query, model.pages, model.block_table, model.scale, model.rope, model.layout
        )
        search_keys([search], table, layer, inputs)
        outputs += model.run(table, [(0, slot, first, end)], layer)
        found[first] = search.found(layer)
    return torch.cat(outputs), search, found


def expected(model, edits, layer):
    parts = (model.query[0], model.key[0], model.value[0])
    return attend_while_searching(*(p.double() for p in parts), edits, layer, model.scale)


@pytest.mark.parametrize("decode", ["frozen", "running", "off"])
@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("block_size, head_dim", [(32, 64), (128, 32)])
def test_a_searching_request_matches_the_reference(ahead, decode, block_size, head_dim):
    model = Model(layout_of(block_size, head_dim), 6, 2, [LENGTH])
    edits = act(ahead, decode)
    for layer in range(2):
        output, _, found = run(model, edits, layer, LENGTH)
        by_segment = dict(
            found_by_segment(
                model.query[0].double(), model.key[0].double(), edits, layer, model.scale
            )
        )
        assert any(map(any, by_segment.values()))
        for first, keys in by_segment.items():
            assert found[first] == {head: list(ks) for head, ks in enumerate(keys) if ks}, first
        assert_close(output, expected(model, edits, layer), 1e-5, f"{ahead}, {decode}")


@pytest.mark.parametrize("decode", ["frozen", "running"])
@pytest.mark.parametrize("ahead", [True, False])
def test_chunks_change_no_bit(ahead, decode):
    model = Model(layout_of(32, 64), 6, 2, [LENGTH])
    edits = act(ahead, decode)
    whole, search, _ = run(model, edits, 0, LENGTH)
    for chunk in (1, 7, 63):
        cut_output, cut_search, _ = run(model, edits, 0, chunk)
        assert torch.equal(cut_output, whole)
        assert cut_search.mass(0) == search.mass(0) > 0
        assert cut_search.rows == search.rows == (LENGTH if decode == "running" else PROMPT)


@pytest.mark.parametrize("prompt", [1, 31, 32, 33, 64, 100])
def test_prompts_of_awkward_lengths_match_the_reference(prompt):
    model = Model(layout_of(32, 32), 6, 2, [LENGTH])
    for ahead in (True, False):
        edits = act(ahead, prompt=prompt)
        output, _, _ = run(model, edits, 1, 40)
        assert_close(output, expected(model, edits, 1), 1e-5, f"{ahead}, prompt of {prompt}")


def test_the_mass_is_what_rows_give_to_the_keys_found_for_them():
    model = Model(layout_of(32, 64), 6, 2, [LENGTH])
    for ahead in (True, False):
        edits = act(ahead, "running")
        _, search, _ = run(model, edits, 0, LENGTH)
        before = model.weights(0, edits, 0).before
        starts = found_by_segment(
            model.query[0].double(), model.key[0].double(), edits, 0, model.scale
        )
        ends = [start for start, _ in starts[1:]] + [LENGTH]
        mass = sum(
            float(before[head, start:end, list(keys)].sum())
            for (start, found), end in zip(starts, ends, strict=True)
            for head, keys in enumerate(found)
        )
        assert search.mass(0) == pytest.approx(mass, abs=1e-3)


def test_rows_sum_to_one_sinks_keep_beta_and_the_rest_keeps_its_ratios():
    """Read off the outputs: one-hot values make them the weights themselves."""
    model = Model(layout_of(32, 64), 6, 2, [64])
    model.value[0] = torch.eye(64)[:, None].expand(64, 2, 64).contiguous()
    halves = model.pages.view(len(model.pages), 2, 64, 64).chunk(2, dim=2)
    at = torch.arange(64)
    slots = model.block_table[0].long()[at // 32] * 32 + at % 32
    model.write(model.key[0], model.value[0], *halves, slots)
    edits = act(True, prompt=64)
    output, _, found = run(model, edits, 0, 64, 64)
    plain = model.weights(0, edits, 0).before.transpose(0, 1)  # [rows, heads, keys]
    edited = output.double()
    assert torch.allclose(edited.sum(-1), torch.ones(64, 6, dtype=torch.float64), atol=1e-5)
    for head in range(6):
        sinks = found[0].get(head, [])
        rest = [key for key in range(64) if key not in sinks]
        kept = 0.4 if sinks else 1.0
        assert torch.allclose(edited[:, head, sinks], kept * plain[:, head, sinks], atol=1e-6)
        before, after = plain[:, head, rest], edited[:, head, rest]
        shares = after / after.sum(-1, keepdim=True)
        assert torch.allclose(shares, before / before.sum(-1, keepdim=True), atol=1e-5)


def test_where_nothing_is_found_and_in_unselected_heads_the_bits_are_the_kernels_own():
    model = Model(layout_of(32, 64), 6, 2, [LENGTH])
    edits = act(True)
    output, _, found = run(model, edits, 0, LENGTH)
    nothing, search, _ = run(model, act(True, threshold=1e6), 0, LENGTH)
    table = model.table()
    (unedited,) = model.run(table, [(0, table.insert(edits[:1]), 0, LENGTH)])
    assert torch.equal(nothing, unedited) and search.mass(0) == 0
    untouched = [head for head in range(6) if head not in found[0]]
    assert set(untouched) >= set(range(6)) - set(on_some(6).heads(0)) and found[0]
    assert torch.equal(output[:, untouched], unedited[:, untouched])


def test_a_rank_finds_what_all_heads_find_together():
    from heed_kernels.table import EditTable

    model = Model(layout_of(32, 32), 6, 2, [PROMPT])
    edits = act(True)
    _, whole, _ = run(model, edits, 0, PROMPT, PROMPT)
    parts = []
    for rank in range(2):
        table = EditTable(8, 2, 6, 2, head_start=3 * rank, local_query_heads=3)
        slot = table.insert(edits)
        search = KeySearch(table, slot, edits[1])
        search.advance(np.array([slot, 0, PROMPT, 0, 0], np.int32))
        heads = slice(3 * rank, 3 * rank + 3)
        query = model.query[0][:, heads].contiguous()
        pages = model.pages[:, rank : rank + 1]
        inputs = LayerInputs(query, pages, model.block_table, model.scale, model.rope, model.layout)
        search_keys([search], table, 0, inputs)
        parts.append(search)
    assert parts[0].found(0) | parts[1].found(0) == whole.found(0)
    assert sum(part.mass(0) for part in parts) == pytest.approx(whole.mass(0))


@pytest.mark.parametrize("decode", ["frozen", "running", "off"])
@pytest.mark.parametrize("kept", [32, 64, 128])
def test_a_search_that_goes_on_from_counted_rows_ends_like_one_from_the_start(kept, decode):
    model = Model(layout_of(32, 64), 6, 2, [LENGTH])
    edits = act(False, decode)
    whole, search, found = run(model, edits, 0, LENGTH)
    table = model.table()
    slot = table.insert(edits)
    resumed = KeySearch(table, slot, edits[1])
    # Another prompt may have counted them: it is longer, and its generated rows are not.
    _, other, _ = run(model, act(False, "frozen", prompt=140), 0, LENGTH, kept)
    resumed.resume(other.counted())
    outputs = []
    for first, end in steps_of(resumed.segments, LENGTH, LENGTH):
        if first >= kept:
            resumed.advance(np.array([slot, 0, end - first, first, 0], np.int32))
            inputs = LayerInputs(
                model.query[0][first:end].contiguous(), model.pages, model.block_table, model.scale,
                model.rope, model.layout,
            )  # fmt: skip
            search_keys([resumed], table, 0, inputs)
            outputs += model.run(table, [(0, slot, first, end)], 0)
            assert resumed.found(0) == found[first]
    assert torch.equal(torch.cat(outputs), whole[kept:])
    assert (resumed.mass(0), resumed.rows) == (search.mass(0), search.rows)


@pytest.mark.parametrize("chunk", [1, 40, LENGTH])
def test_where_generated_rows_are_not_edited_the_prompts_last_keys_stay(chunk):
    model = Model(layout_of(32, 64), 6, 2, [LENGTH])
    prompt = 100
    _, search, found = run(model, act(False, "off", prompt), 0, chunk)
    _, _, frozen = run(model, act(False, "frozen", prompt), 0, LENGTH)
    assert search.found(0) == found[64] == frozen[64] != frozen[prompt]


def test_the_mass_may_exceed_64_bits():
    model = Model(layout_of(32, 64), 6, 2, [64])
    edits = act(False, prompt=64)
    table = model.table()
    slot = table.insert(edits)
    search = KeySearch(table, slot, edits[1])
    # One key of every searched head has so much that a head's sum is below 2^63, and theirs is not
    # once the rows at hand are counted.
    heads = on_some(6).heads(0)
    assert len(heads) > 1
    sums = np.zeros((len(heads), 32), np.int64)
    sums[:, :2] = (1 << 63) // len(heads) - 1
    search.resume(Counted(32, {0: sums}, {0: 1 << 64}))
    assert search.mass(0) == 2.0**24
    search.advance(np.array([slot, 0, 32, 32, 0], np.int32))
    inputs = LayerInputs(
        model.query[0][32:64].contiguous(), model.pages, model.block_table, model.scale, model.rope,
        model.layout,
    )  # fmt: skip
    search_keys([search], table, 0, inputs)
    assert search.found(0) == {head: [1] for head in heads}
    given = model.weights(0, edits, 0).before[list(heads), 32:, 1].sum()
    assert search.mass(0) - 2.0**24 == pytest.approx(float(given), abs=1e-3)


def test_rows_out_of_turn_are_an_error():
    model = Model(layout_of(32, 32), 6, 2, [LENGTH])
    table = model.table()
    for ahead, rows, message in [
        (True, (0, 100), "more than one step"),
        (True, (5, 150), "came where row 0"),
        (False, (0, 33), "not one segment"),
    ]:
        slot = table.insert(act(ahead))
        search = KeySearch(table, slot, act(ahead)[1])
        with pytest.raises(EditError, match=message):
            search.advance(np.array([slot, 0, rows[1] - rows[0], rows[0], 0], np.int32))


def test_sums_are_kept_only_while_they_can_change_what_is_found():
    model = Model(layout_of(32, 32), 6, 2, [LENGTH])
    for ahead in (True, False):
        assert not run(model, act(ahead), 0, LENGTH)[1]._columns
        kept = run(model, act(ahead, "running"), 0, LENGTH)[1]._columns
        assert kept[0].sums.shape[1] == 256
