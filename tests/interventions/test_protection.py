"""Edits that pass as harmless to the first tokens never take weight from them; those that do are caught."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intervention_views import VISION, prompt

from heed_interventions import METHODS, ImageSpan, parse, resolve
from heed_interventions.protection import weakens
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.evict import Evict, NormScore
from heed_kernels.reference.attention import attention_weights

KEYS = 12
HEADS = 2
BOTH = HeadSet((0b11,))

positions = st.integers(0, KEYS)
ranges = (
    st.lists(positions, min_size=2, max_size=4, unique=True)
    .map(sorted)
    .map(lambda ends: KeyRanges(tuple(zip(ends[::2], ends[1::2], strict=False))))
)
rows = st.tuples(positions, positions).map(lambda pair: Rows(min(pair), max(pair) + 1))
heads = st.integers(1, 3).map(lambda mask: HeadSet((mask,)))
trailing = st.builds(TrailingKeys, first=positions, window=st.integers(1, 5))
logit_edits = st.one_of(
    st.builds(
        KeyBias,
        on=heads,
        rows=rows,
        keys=ranges | trailing,
        bias=st.floats(-4, 4),
        source=st.just(0),
    ),
    st.builds(
        KeyScale,
        on=heads,
        rows=rows,
        keys=ranges,
        scale=st.floats(0, 3),
        absolute=st.floats(-1, 1),
        source=st.just(0),
    ),
    st.builds(
        VisibleKeys,
        sinks=positions,
        window=st.integers(1, 6),
        rolling=st.just(False),
        source=st.just(0),
    ),
    st.builds(
        VisibleRanges,
        rows=rows,
        ranges=ranges.map(lambda keys: tuple((start, end, 0) for start, end in keys.ranges)),
        source=st.just(0),
    ),
    st.builds(HeadGain, on=heads, rows=rows, gain=st.floats(-2, 4), source=st.just(0)),
)
transfers = st.builds(
    MassTransfer,
    on=heads,
    rows=rows,
    sources=ranges,
    destination=ranges | st.just(ALL_KEYS),
    fraction=st.floats(0, 1),
    gate=st.just(Gate()),
    source=st.just(0),
)
lists = st.tuples(st.lists(logit_edits, max_size=3), st.lists(transfers, max_size=1)).map(
    lambda parts: [*parts[0], *parts[1]]
)


def weights(edits: list[Edit], found: list[list[int]] | None = None) -> torch.Tensor:
    """[HEADS, KEYS, KEYS] of one fixed sequence."""
    random = torch.Generator().manual_seed(1)
    query, key = (
        torch.randn(KEYS, HEADS, 8, dtype=torch.float64, generator=random) for _ in range(2)
    )
    return attention_weights(query, key, edits, 0, 0.6, found=found).after


PLAIN = weights([])


def loses(edits: list[Edit], tokens: int, found: list[list[int]] | None = None) -> bool:
    """Whether some row gives one of the first `tokens` keys less than without the edits."""
    changed = weights(edits, found)[:, :, :tokens]
    return bool((changed < PLAIN[:, :, :tokens] - 1e-12).any())


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(edits=lists, tokens=st.integers(1, KEYS))
def test_edits_that_pass_take_no_weight_from_the_first_tokens(
    edits: list[Edit], tokens: int
) -> None:
    if weakens(edits, tokens) is None:
        assert not loses(edits, tokens)


def find(protected: int) -> FindKeys:
    keys = KeyRanges(((0, protected),)) if protected else KeyRanges(())
    return FindKeys(BOTH, Rows(0, OPEN), 0.1, 1, 4, keys, protected == 0, 0)


@pytest.mark.parametrize(("protected", "passes"), [(3, True), (2, False), (0, False)])
def test_a_transfer_from_found_keys_passes_where_the_search_leaves_the_first_tokens_out(
    protected: int, passes: bool
) -> None:
    transfer = MassTransfer(BOTH, Rows(0, OPEN), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0)
    found = [list(range(protected, protected + 2))] * HEADS
    assert (weakens([find(protected), transfer], 3) is None) == passes
    assert loses([find(protected), transfer], 3, found) == (not passes)
    assert weakens([transfer], 3) is not None


@pytest.mark.parametrize(("sinks", "passes"), [(6, True), (5, False)])
def test_an_eviction_passes_where_it_keeps_the_first_tokens(sinks: int, passes: bool) -> None:
    evict = Evict(NormScore(), None, (9,), 9, sinks, 2, False, 1, False, Rows(12, OPEN), 0)
    assert (weakens([evict], 6) is None) == passes


@pytest.mark.parametrize(
    ("needed", "only_needed", "passes"), [(6, True, True), (5, True, False), (6, False, False)]
)
def test_a_transfer_from_flagged_keys_passes_where_the_first_tokens_cannot_be_flagged(
    needed: int, only_needed: bool, passes: bool
) -> None:
    image = KeyRanges(((needed, 9),))
    flags = FlagKeys(BOTH, Rows(0, 12), (0,), 20.0, image, only_needed, 0)
    transfer = MassTransfer(BOTH, Rows(9, OPEN), FoundKeys(), image, 0.6, Gate(), 0)
    assert (weakens([flags, transfer], 6) is None) == passes
    assert loses([flags, transfer], 6, [[needed, 8] if only_needed else [2, 8]] * HEADS) == (
        not passes
    )


def test_an_edit_that_nobody_has_judged_does_not_pass() -> None:
    unknown: Any = object()
    with pytest.raises(AssertionError):
        weakens([unknown], 1)


LOSING: list[dict[str, Any]] = [
    {"method": "zerotuning", "gamma": 2},
    {"method": "zerotuning", "gamma": 0.5},
    {"method": "emphasis", "spans": [{"start": 8, "end": 10}]},
    {"method": "streaming_llm", "sinks": 5, "window": 16, "positions": "original"},
    {"method": "locore"},
    {"method": "attention_scale", "q_scale": 2},
    {"method": "act"},
    {"method": "act", "protect": "position_0"},
    {"method": "snapkv", "budget": 16, "sinks": 5, "window": 4},
    {"method": "pai"},
    {"method": "paint"},
    {"method": "vaf", "layers": "all"},
    {"method": "avar"},
    {"method": "adaptvis", "w": 0.5},
    {"method": "var"},
    {"method": "gift", "saliency_layer": 0, "layers": [1]},
]
SPARING: list[dict[str, Any]] = [
    {"method": "emphasis", "spans": [{"start": 8, "end": 10}, {"start": 0, "end": 6}]},
    {"method": "streaming_llm", "sinks": 6, "window": 16, "positions": "original"},
    {"method": "streaming_llm", "sinks": 6, "window": 16},
    {"method": "head_gain", "gain": 2},
    {"method": "snapkv", "budget": 16, "sinks": 6, "window": 4},
    {"method": "var", "include_text_sinks": False},
    {"method": "vhr"},
    {"method": "vhr", "mode": "masked", "rows": "all"},
    {"method": "spin"},
]
OF_NO_METHOD: list[Edit] = [
    VisibleRanges(Rows(), ((0, 6, 0),), 0),
    HeadMix(BOTH, Rows(), 1.0, b"", 0),
    ObserveColumns(BOTH, Rows(), 0),
    ObserveMass(BOTH, Rows(), ALL_KEYS, 0),
]


def edits_of(item: dict[str, Any]) -> tuple[Edit, ...]:
    return resolve(parse([item]), VISION, prompt(20, (ImageSpan(8, 14),))).edits


@pytest.mark.parametrize(
    ("item", "passes"),
    [(item, False) for item in LOSING] + [(item, True) for item in SPARING],
    ids=str,
)
def test_methods_are_judged_by_the_edits_that_they_make(item: dict[str, Any], passes: bool) -> None:
    edits = edits_of(item)
    assert edits
    assert (weakens(edits, 6) is None) == passes


def test_every_method_and_every_kind_of_edit_is_judged() -> None:
    items = [*LOSING, *SPARING]
    judged = {item["method"] for item in items}
    assert judged >= {name for name, method in METHODS.items() if not method.evicts}
    edits = [*OF_NO_METHOD, *(edit for item in items for edit in edits_of(item))]
    assert {type(edit) for edit in edits} == set(get_args(Edit))
    assert all(weakens([edit], 6) is None for edit in OF_NO_METHOD)
