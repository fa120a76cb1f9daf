"""Eviction on the CPU against its float64 reference: the same keys survive, and later rows read them.

Scores are float32 sums, or exact; where a key's score is within 1e-5 (relative) of the cut, it may fall on
the other side. Such keys are counted and printed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.kernels.evicting_model import Dense, Paged, Tokens
from tests.kernels.paged_model import assert_close, layout_of, write_pairs, write_plain

from heed_kernels.edits import (
    ALL_KEYS,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    Rows,
    TrailingKeys,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    HeadShare,
    KindShare,
    NormScore,
    QueryShare,
    WindowScore,
)
from heed_kernels.eviction import Eviction
from heed_kernels.reference import eviction as reference_eviction
from heed_kernels.survivors import LayerScores, head_counts, kind_counts, survivors
from heed_kernels.table import EditTable

SCORES = {
    "snapkv": WindowScore(32, 5),
    "max": WindowScore(17, 7, "max"),
    "variance": WindowScore(32, 5, variance=200.0),
    "layer": WindowScore(1, heads="layer"),
    "column": ColumnScore(),
    "norm": NormScore(),
    "difference": DifferenceScore(),
    "expected": ExpectedScore(64, 4, 0.01, True),
    "mean": ExpectedScore(512, 0, 0.0, False),
}
SHARES = {
    "head": HeadShare(0.2),
    "kind": KindShare((1, 0), 40),
    "query": QueryShare(32, None, 1.0, 1.0),
    "cake": QueryShare(32, 50.0, 1.6, 0.4),
}


def evict(prompt, score, share=None, counts=(90, 70), **options):
    values = {
        "score": score, "share": share, "counts": counts, "most": max(counts), "sinks": 4,
        "recent": 32, "again": False, "together": 32, "every_row": True, "rows": Rows(prompt),
        "source": 0,
    }  # fmt: skip
    if share is not None:
        values["most"] = prompt
    return Evict(**values | options)


def beside(query_heads, prompt):
    on = HeadSet(((1 << query_heads) - 1, 0b101 & ((1 << query_heads) - 1)))
    return [
        KeyBias(on, Rows(), KeyRanges(((0, 2),)), 1.5, 0),
        KeyBias(on, Rows(0, prompt), KeyRanges(((20, 40), (60, 61))), 2.0, 0),
        KeyBias(on, Rows(prompt - 20, prompt), TrailingKeys(3, 16), -1.0, 0),
        KeyScale(on, Rows(prompt - 9), ALL_KEYS, 1.25, -0.1, 0),
        HeadGain(on, Rows(), 0.5, 0),
    ]


def near_cut(ours, theirs, scores, position):
    """How many keys differ; all of them near the cut, which both agree to lie among these keys."""
    assert len(ours) == len(theirs)
    differing = set(ours) ^ set(theirs)
    place = {int(p): i for i, p in enumerate(position)}
    at = [scores[place[int(p)]] for p in differing]
    assert not at or max(at) - min(at) <= 1e-5 * max(abs(s) for s in at), (sorted(differing), at)
    return len(differing)


def run(tokens, edits, prompt, chunks, *, kind=Paged, **options):
    """Through all steps, each compared with the definition. Returns the pages' side."""
    paged = kind(tokens, edits, prompt, **options)
    edit = paged.eviction.edit
    dense = [Dense(tokens, layer, edits) for layer in range(tokens.layers)]
    differing = 0
    tolerance = 2e-5 if tokens.layout.dtype == torch.float32 else 2**-7
    for first, end in chunks:
        before = len(paged.moved)
        output = paged.step(first, end)
        for layer, expected in enumerate(each.advance(first, end) for each in dense):
            written = ~output[layer].isnan().flatten(1).any(dim=1)
            assert first < prompt or written.all()
            if written.any():
                assert_close(
                    output[layer][written],
                    expected[written],
                    tolerance,
                    f"layer {layer}, rows from {first}",
                )
        if len(paged.moved) == before:
            continue
        moved, held = paged.moved[-1], [each.held() for each in dense]
        wanted = reference_eviction.survivors(edit, held, tokens.scale, tokens.rope)
        for layer, (ours, theirs) in enumerate(zip(moved.survivors, wanted, strict=True)):
            scores = reference_eviction.scores(edit, held[layer], tokens.scale, tokens.rope)
            for head in range(tokens.kv_heads):
                position = held[layer].position[head]
                differing += near_cut(ours[head], theirs[head], scores[head], position)
            assert paged.table.kept[paged.slot, layer].tolist() == [len(keys) for keys in ours]
            dense[layer].evict(ours)
        counts = [len(keys) for heads in moved.survivors for keys in heads]
        assert moved.most == max(counts) and moved.kept_tokens == np.mean(counts)
        assert moved.counts.flatten().tolist() == counts
        assert paged.table.evicted_end[paged.slot] == end
    if differing:
        print(f"{differing} keys near the cut differ")
    return paged


def steps(prompt, total, chunk, block_size=16):
    """Chunks of the prompt, the last 32 rows together; then, up to each full block, a single row and the
    others, as when generated rows are computed anew."""
    cuts = [*range(0, prompt - 32, chunk), prompt - 32, prompt]
    for full in range(
        prompt // block_size * block_size + block_size, total + block_size, block_size
    ):
        cuts += [cuts[-1] + 1, min(full, total)]
    return [(a, b) for a, b in pairwise(cuts) if a < b <= total]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "query_heads, kv_heads, head_dim, block_size, dtype, write, prompt",
    [
        (6, 2, 32, 32, torch.float32, write_plain, 200),
        (4, 4, 64, 16, torch.float32, write_plain, 129),
        (7, 1, 64, 32, torch.bfloat16, write_pairs, 224),
        (3, 1, 80, 48, torch.float16, write_plain, 163),
    ],
)
def test_every_score_keeps_the_keys_that_the_reference_keeps(
    name, query_heads, kv_heads, head_dim, block_size, dtype, write, prompt
):
    tokens = Tokens(
        prompt + 5, query_heads, kv_heads, layout_of(block_size, head_dim, dtype, write)
    )
    edits = [evict(prompt, SCORES[name]), *beside(query_heads, prompt)]
    paged = run(tokens, edits, prompt, steps(prompt, prompt + 5, 64), write=write)
    assert len(paged.moved) == 1
    assert [len(heads[0]) for heads in paged.moved[0].survivors] == [90, 70]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("query_heads, kv_heads", [(6, 2), (4, 4), (6, 3)])
def test_every_share_gives_heads_and_layers_what_the_reference_gives(share, query_heads, kv_heads):
    prompt = 190
    tokens = Tokens(prompt + 3, query_heads, kv_heads, layout_of(32, 32), seed=3)
    for score in (SCORES["snapkv"], SCORES["variance"]):
        edits = [evict(prompt, score, SHARES[share])]
        paged = run(tokens, edits, prompt, steps(prompt, prompt + 3, 64))
        counts = [[len(keys) for keys in heads] for heads in paged.moved[0].survivors]
        assert sum(map(sum, counts)) == (90 + 70) * kv_heads
        assert len({*map(tuple, counts)}) > 1 or len({*counts[0]}) > 1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("score", ["column", "layer", "norm", "difference", "expected"])
def test_what_is_evicted_again_in_decode_is_what_the_reference_evicts(score, overlap):
    prompt, total = 75, 180
    tokens = Tokens(total, 6, 2, layout_of(16, 32), seed=1)
    edit = evict(prompt, SCORES[score], counts=(60, 50), recent=10, again=True)
    paged = run(tokens, [edit], prompt, steps(prompt, total, 20), overlap=overlap)
    assert len(paged.moved) == 1 + (total - 80) // 16 + 1
    assert all(moved.most == 60 for moved in paged.moved)


def test_a_budget_above_the_prompt_is_first_met_in_decode():
    prompt, total = 40, 130
    tokens = Tokens(total, 6, 2, layout_of(16, 32), seed=2)
    edit = evict(prompt, ColumnScore(), counts=(70, 55), recent=10, again=True, together=1)
    paged = run(tokens, [edit], prompt, steps(prompt, total, 20))
    assert [moved.most for moved in paged.moved][:3] == [64, 70, 70]


@pytest.mark.parametrize("write", [write_plain, write_pairs])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_survivors_move_bit_for_bit_into_any_blocks_even_their_own(write, dtype):
    prompt = 203
    tokens = Tokens(prompt + 1, 4, 2, layout_of(32, 64, dtype, write))
    edits = [evict(prompt, NormScore(), HeadShare(0.5), (150, 190))]
    for overlap in (False, True):
        for seed in range(3):
            paged = run(
                tokens, edits, prompt, [(0, prompt), (prompt, prompt + 1)], write=write,
                overlap=overlap, seed=seed,
            )  # fmt: skip
            survivors = paged.moved[0].survivors
            for layer, cache in paged.caches.items():
                flat = cache.view(len(cache), 2, -1)
                for head, positions in enumerate(survivors[layer]):
                    at = np.arange(len(positions))
                    block = torch.from_numpy(paged.row[at // 32]).long()[:, None]
                    for offset, values in (
                        (tokens.layout.key_offset, tokens.key),
                        (tokens.layout.value_offset, tokens.value),
                    ):
                        found = flat[block, head, torch.from_numpy(offset[at % 32]).long()]
                        assert torch.equal(found, values[layer, torch.from_numpy(positions), head])


@pytest.mark.parametrize("name", SCORES)
def test_chunks_and_a_second_run_keep_the_same_keys(name):
    prompt = 300
    tokens = Tokens(prompt, 6, 2, layout_of(32, 32), seed=4)
    edits = [evict(prompt, SCORES[name], HeadShare(0.2)), *beside(6, prompt)]
    paged = Paged(tokens, edits, prompt)
    kept = []
    for chunk in (300, 7, 64, 300):
        paged.start()
        assert not paged.table.kept[paged.slot].any()
        assert paged.table.evicted_end[paged.slot] == 0
        for first, end in steps(prompt, prompt, chunk) if chunk < 300 else [(0, 300)]:
            paged.step(first, end)
        kept.append([keys.tolist() for heads in paged.moved[-1].survivors for keys in heads])
    assert kept[0] == kept[1] == kept[2] == kept[3]


@pytest.mark.parametrize(
    "name, share",
    [(name, None) for name in SCORES]
    + [(name, "head") for name in ("layer", "column", "norm", "expected")]
    + [("snapkv", share) for share in SHARES],
)
def test_two_ranks_decide_alike_and_each_moves_its_own_heads(name, share):
    prompt = 150
    tokens = Tokens(prompt + 2, 6, 2, layout_of(16, 32), seed=5)
    edits = [evict(prompt, SCORES[name], SHARES.get(share))]
    whole = Paged(tokens, edits, prompt)
    ranks = [Paged(tokens, edits, prompt, kv_heads=heads) for heads in ((0, 1), (1, 2))]
    parts = [[], []]
    for first, end in steps(prompt, prompt + 2, 150):
        expected = whole.step(first, end)
        if end == prompt:
            # The ranks run one after the other here: the first time over, only to hear their parts.
            for rank, part in zip(ranks, parts, strict=True):
                rank.gather = lambda array, part=part: part.append(array) or np.repeat(array, 2, 0)
                rank.eviction.due = lambda computed: False
                rank.step(first, end)
                rank.eviction.decide(end, rank.pages(), rank.gather)
                del rank.eviction.due
            together = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
            for rank in ranks:
                answers = iter(together)
                rank.gather = lambda array, answers=answers: next(answers)
                rank.evict(end)
                for ours, theirs in zip(
                    rank.moved[0].survivors, whole.moved[0].survivors, strict=True
                ):
                    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        else:
            outputs = [rank.step(first, end) for rank in ranks]
            assert torch.equal(torch.cat(outputs, dim=2).nan_to_num(), expected.nan_to_num())


def test_a_head_that_keeps_more_than_the_edit_says_is_an_error():
    scores = [LayerScores(np.zeros((2, 200)))] * 2
    edit = evict(200, NormScore())
    assert head_counts(edit, scores) == [[90, 90], [70, 70]]
    with pytest.raises(EditError, match="keeps 90 keys, at most 89"):
        head_counts(replace(edit, most=89), scores)


@pytest.mark.parametrize("chosen, others", [(1, 1), (1, 0), (2, 3), (3, 5)])
def test_chosen_heads_and_others_meet_the_layers_budget(chosen, others):
    keys, protected = 50, 12
    for count in range(protected, keys + 1):
        first, second = kind_counts(chosen, others, keys, protected, count)
        assert (len(first), len(second)) == (chosen, others)
        assert sum(first) + sum(second) == (chosen + others) * count
        assert protected <= min(first + second) and max(first + second) <= keys
        assert max(first) == keys or set(second) <= {protected}


def test_nothing_is_scored_and_nothing_is_due_where_every_head_keeps_all():
    table = EditTable(1, 2, 6, 2)
    edit = evict(80, ColumnScore(), counts=(80, 90), together=32)
    slot = table.insert([edit], prompt_length=80)
    eviction = Eviction(edit, table, slot, 80, 16)
    assert not eviction.wants(0, 80)
    assert not eviction.due(80)
    eviction = Eviction(replace(edit, counts=(80, 79)), table, slot, 80, 16)
    assert eviction.wants(0, 16)
    assert eviction.due(80)
    assert not eviction.due(96)


def test_only_the_rows_that_a_score_needs_are_wanted():
    table = EditTable(1, 2, 6, 2)
    edit = evict(100, SCORES["snapkv"], every_row=False)
    slot = table.insert([edit], prompt_length=100)

    def wants(score, first, rows, **options):
        return Eviction(evict(100, score, **options), table, slot, 100, 16).wants(first, rows)

    assert not wants(SCORES["snapkv"], 0, 68)
    assert wants(SCORES["snapkv"], 68, 32)
    assert wants(SCORES["snapkv"], 0, 69)
    assert not wants(SCORES["norm"], 0, 100)
    assert wants(SCORES["norm"], 68, 32, share=SHARES["query"])
    assert not wants(SCORES["column"], 100, 1)
    assert wants(SCORES["column"], 100, 1, again=True)
    assert not wants(SCORES["layer"], 110, 1, again=True)
    assert wants(SCORES["layer"], 111, 1, again=True)


def test_rows_that_come_apart_or_are_missing_are_errors():
    tokens = Tokens(100, 6, 2, layout_of(16, 32))
    apart = Paged(tokens, [evict(100, SCORES["snapkv"])], 100)
    apart.step(0, 64)
    with pytest.raises(EditError, match="together"):
        apart.step(64, 80)
    missing = Paged(tokens, [evict(100, ColumnScore())], 100)
    with pytest.raises(EditError, match="comes after"):
        missing.step(16, 100)
    with pytest.raises(EditError, match="no decision"):
        missing.eviction.move(missing.pages(), missing.row, [1])
    few = Paged(tokens, [evict(100, NormScore())], 100)
    few.eviction.due = lambda computed: False
    few.step(0, 100)
    few.eviction.decide(100, few.pages(), few.gather)
    with pytest.raises(EditError, match="do not hold"):
        few.eviction.move(few.pages(), few.row, few.row[:3])
    with pytest.raises(EditError, match="holds keys of another place"):
        few.eviction.move(few.pages(), few.row, few.row[:6][::-1])


def test_a_rank_with_part_of_a_group_and_another_prompt_are_errors():
    edit = evict(100, NormScore())
    table = EditTable(1, 2, 6, 2, head_start=2, local_query_heads=2)
    with pytest.raises(EditError, match="several ranks"):
        Eviction(edit, table, 0, 100, 16)
    with pytest.raises(EditError, match="100"):
        Eviction(edit, EditTable(1, 2, 6, 2), 0, 99, 16)


@pytest.mark.parametrize("share", [None, *SHARES])
def test_scores_that_are_no_numbers_leave_a_request_its_whole_budget(share):
    """As of a model that overflows, in all layers or in the first one alone."""
    edit = evict(100, SCORES["snapkv"], SHARES.get(share))
    random = np.random.default_rng(0)
    fine = LayerScores(random.random((2, 100)), random.random((2, 64)), 0.5)
    broken = LayerScores(np.full((2, 100), np.nan), np.full((2, 64), np.inf), np.nan)
    for layers in ([broken, broken], [broken, fine]):
        kept = [[len(keys) for keys in heads] for heads in survivors(edit, layers)]
        assert sum(map(sum, kept)) == 2 * sum(edit.counts)


def test_a_score_that_is_no_number_is_the_lowest():
    edit = evict(100, SCORES["snapkv"])
    scores = np.tile(np.arange(100.0), (2, 1))
    scores[:, 60] = np.nan
    expected = survivors(edit, [LayerScores(np.where(np.isnan(scores), -1, scores))] * 2)
    found = survivors(edit, [LayerScores(scores)] * 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_scores_of_another_window_are_not_used():
    """Nothing was evicted since, so that as many keys are there."""
    tokens = Tokens(100, 6, 2, layout_of(16, 32))
    model = Paged(tokens, [evict(100, SCORES["snapkv"])], 100)
    model.eviction.due = lambda computed: False
    model.step(0, 100)
    with pytest.raises(EditError, match="last rows"):
        model.eviction.decide(101, model.pages(), model.gather)
