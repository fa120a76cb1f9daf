"""What the prefix cache is told: class, salt digest, and how far blocks may be published."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intervention_views import EVERY_HEAD, MODEL, VISION, prompt

from heed_interventions import ImageSpan, PromptView, Resolution, parse, resolve
from heed_interventions.method import CacheClass, Method
from heed_interventions.publication import below, digest
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import (
    OPEN,
    Edit,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    ObserveColumns,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.evict import (
    Evict,
    HeadShare,
    NormScore,
    QueryShare,
    Score,
    Share,
    WindowScore,
)

ZERO: dict[str, Any] = {"method": "zerotuning", "gamma": 2}
GAIN: dict[str, Any] = {"method": "head_gain", "gain": 2}
STREAM: dict[str, Any] = {"method": "streaming_llm", "window": 16}
EMPHASIS: dict[str, Any] = {"method": "emphasis", "spans": [{"start": 5, "end": 9}]}
SCALE: dict[str, Any] = {"method": "attention_scale", "q_scale": 2}
LOCORE: dict[str, Any] = {"method": "locore"}


def run(*raw: dict[str, Any], length: int = 20) -> Resolution:
    return resolve(parse(list(raw)), MODEL, prompt(length))


@pytest.mark.parametrize(
    ("raw", "cache", "limit"),
    [
        ([ZERO], "salted", None),
        ([STREAM], "salted", None),
        ([SCALE], "salted", None),
        ([GAIN], "salted", None),
        ([{**GAIN, "rows": "prompt"}], "salted", 20),
        ([{**GAIN, "rows": "generated"}], "shared", 20),
        ([{**GAIN, "rows": "last_and_generated"}], "shared", 19),
        ([EMPHASIS], "salted", 20),
        ([{**EMPHASIS, "rows": "prompt"}], "salted", 20),
        ([{**EMPHASIS, "rows": "generated"}], "shared", 20),
        ([{**EMPHASIS, "rows": "last_and_generated"}], "shared", 19),
        ([LOCORE], "shared", 20),
        ([ZERO, LOCORE], "salted", 20),
        ([LOCORE, {**GAIN, "rows": "last_and_generated"}, EMPHASIS], "salted", 19),
        ([{**ZERO, "gamma": 1}], "shared", None),
        ([{**EMPHASIS, "alpha": 1}, ZERO], "salted", None),
    ],
)
def test_class_and_limit_follow_from_the_rows_that_are_edited(
    raw: list[dict[str, Any]], cache: str, limit: int | None
) -> None:
    resolution = run(*raw)
    assert (resolution.cache, resolution.publication_limit) == (cache, limit)
    assert (resolution.digest is None) == (cache == "shared")


def test_rows_after_the_image_do_not_depend_on_the_prompts_length() -> None:
    raw = {**GAIN, "rows": "after_image"}
    view = PromptView(20, images=(ImageSpan(2, 5),))
    resolution = resolve(parse([raw]), VISION, view)
    assert (resolution.cache, resolution.publication_limit) == ("salted", None)


def test_each_report_has_the_class_of_its_own_intervention() -> None:
    assert [report["cache"] for report in run(ZERO, LOCORE).reports] == ["salted", "shared"]


def test_the_order_of_the_list_does_not_change_the_digest() -> None:
    raw = [ZERO, {**GAIN, "layers": [1]}, EMPHASIS, LOCORE]
    assert len({run(*order).digest for order in permutations(raw)}) == 1


@pytest.mark.parametrize(
    "same",
    [
        [
            {**ZERO, "layers": "all"},
            {**ZERO, "layers": [0, 1, 2, 3]},
            {**ZERO, "heads": [*range(8)]},
        ],
        [
            {**ZERO, "layers": [-1]},
            {**ZERO, "layers": [3, 3]},
            {**ZERO, "heads": {"3": [*range(8)]}},
        ],
        [EMPHASIS, {**EMPHASIS, "spans": [{"start": 7, "end": 9}, {"start": 5, "end": 8}]}],
        [EMPHASIS, {**EMPHASIS, "spans": [{"text": "fghi"}]}],
    ],
)
def test_two_ways_to_write_the_same_have_one_digest(same: list[dict[str, Any]]) -> None:
    assert len({run(raw).digest for raw in same}) == 1


@pytest.mark.parametrize("raw", [EMPHASIS, {**EMPHASIS, "rows": "prompt"}, ZERO, STREAM, GAIN])
def test_a_longer_prompt_with_the_same_spans_shares(raw: dict[str, Any]) -> None:
    assert run(raw, length=20).digest == run(raw, length=33).digest


def test_edits_of_rows_that_are_never_published_do_not_change_the_digest() -> None:
    assert run(ZERO, LOCORE).digest == run(ZERO).digest
    assert run(ZERO, {**GAIN, "rows": "generated"}, length=30).digest == run(ZERO).digest


def test_prompt_rows_and_all_rows_are_the_same_to_the_cache() -> None:
    assert run({**GAIN, "rows": "prompt"}).digest == run(GAIN).digest


def test_different_interventions_have_different_digests() -> None:
    raws = [
        [ZERO],
        [ZERO, ZERO],
        [{**ZERO, "gamma": 2.0000000000000004}],
        [{**ZERO, "position": 1}],
        [{**ZERO, "layers": [0]}],
        [{**ZERO, "heads": [0]}],
        [GAIN],
        [SCALE],
        [STREAM],
        [{**STREAM, "positions": "original"}],
        [{**STREAM, "sinks": 5}],
        [{**STREAM, "window": 17}],
        [EMPHASIS],
        [{**EMPHASIS, "spans": [{"start": 5, "end": 8}]}],
        [{**EMPHASIS, "protect_positions": []}],
        [ZERO, GAIN],
    ]
    assert len({run(*raw).digest for raw in raws}) == len(raws)


def test_a_digest_is_a_sha_256_in_hexadecimal() -> None:
    assert re.fullmatch("[0-9a-f]{64}", run(ZERO).digest or "")


class Everything(Method):
    """A method whose statistics look ahead."""

    title, summary, paper = "Everything", "Test.", "none"
    cache = CacheClass.PRIVATE
    method: Literal["everything"] = "everything"

    def is_neutral(self, model: ModelView) -> bool:
        return False

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield HeadGain(self.on(request), Rows(), 2.0, request.source)


def test_one_private_intervention_makes_the_set_private_and_publishes_nothing() -> None:
    resolution = resolve([*parse([ZERO]), Everything()], MODEL, prompt())
    assert resolution.cache == "private"
    assert (resolution.digest, resolution.publication_limit) == (None, 0)
    assert [report["cache"] for report in resolution.reports] == ["salted", "private"]


positions = st.integers(0, 8)
row_ranges = st.builds(Rows, positions, positions | st.just(OPEN))
head_sets = st.sampled_from([HeadSet(EVERY_HEAD), HeadSet((1, 0, 0, 0)), HeadSet((0, 1, 0, 0))])
key_ranges = st.sampled_from(
    [
        ((0, 1),),
        ((0, OPEN),),
        ((2, 5),),
        ((2, 3), (4, 5)),
        ((2, 8),),
        ((6, 8),),
        ((2, 3), (4, OPEN)),
    ]
).map(KeyRanges)
numbers = st.sampled_from([0.5, 2.0])
edits_of_any_kind = st.one_of(
    st.builds(KeyBias, head_sets, row_ranges, key_ranges, numbers, st.just(0)),
    st.builds(
        KeyBias,
        head_sets,
        row_ranges,
        st.builds(TrailingKeys, positions, positions),
        numbers,
        st.just(0),
    ),
    st.builds(KeyScale, head_sets, row_ranges, key_ranges, numbers, numbers, st.just(0)),
    st.builds(HeadGain, head_sets, row_ranges, numbers, st.just(0)),
    st.builds(VisibleKeys, positions, positions, st.booleans(), st.just(0)),
)
sets = st.lists(edits_of_any_kind, max_size=3)


def seen_by_rows(edits: list[Edit], limit: int) -> list[str]:
    """What rows [0, limit) are told, row by row, as text: equal text means equal keys and values."""
    told = []
    for edit in edits:
        if isinstance(edit, VisibleKeys):
            if limit:
                told.append(repr(edit))
            continue
        rows = [row for row in range(limit) if edit.rows.start <= row < edit.rows.end]
        keys: object = None
        if not isinstance(edit, HeadGain):
            keys = edit.keys
            if isinstance(edit.keys, KeyRanges):
                keys = [k for k in range(limit) if any(a <= k < b for a, b in edit.keys.ranges)]
        if rows and keys != []:
            values = [getattr(edit, name, None) for name in ("bias", "scale", "absolute", "gain")]
            told.append(repr((type(edit), edit.on, rows, keys, values)))
    return sorted(told)


@settings(max_examples=500)
@given(sets, sets, st.integers(0, 9), st.integers(0, 9))
def test_equal_digests_mean_equal_edits_on_the_rows_that_both_publish(
    one: list[Edit], other: list[Edit], limit: int, other_limit: int
) -> None:
    if digest(one, limit) == digest(other, other_limit):
        both = min(limit, other_limit)
        # Without a digest rows are stock, and blocks are those of plain requests.
        assert seen_by_rows(one, both) == seen_by_rows(other, both)


@settings(max_examples=300)
@given(sets, sets, st.integers(0, 9))
def test_digests_at_one_limit_are_equal_exactly_when_the_edits_are(
    one: list[Edit], other: list[Edit], limit: int
) -> None:
    same = seen_by_rows(one, limit) == seen_by_rows(other, limit)
    assert (digest(one, limit) == digest(other, limit)) == same
    assert (digest(one, limit) is None) == (seen_by_rows(one, limit) == [])


@given(sets, st.randoms())
def test_digests_forget_order_and_source(edits: list[Edit], random: Any) -> None:
    shuffled = [type(edit)(**{**vars(edit), "source": index}) for index, edit in enumerate(edits)]
    random.shuffle(shuffled)
    assert digest(shuffled, None) == digest(edits, None)


@given(edits_of_any_kind, positions)
def test_clipping_twice_is_clipping_once(edit: Edit, limit: int) -> None:
    once = below(edit, limit)
    assert once is None or below(once, limit) == once


def test_observations_are_not_part_of_a_digest() -> None:
    on = HeadSet((1,))
    asked = [ObserveColumns(on, Rows(), 0), ObserveMass(on, Rows(), KeyRanges(((0, 1),)), 1)]
    assert digest(asked, None) is None


def test_an_eviction_is_seen_by_rows_after_the_prompt_alone() -> None:
    """So its prompt is shared with plain requests, and no generated block of one eviction with another."""

    def evict(score: Score, share: Share | None = None) -> Evict:
        return Evict(score, share, (20,), 20, 4, 8, False, 8, False, Rows(32), 3)

    window = evict(WindowScore(8))
    assert below(window, 32) is None
    assert digest([window], 32) is None
    assert below(window, 33) == replace(window, source=0)
    different = [
        window,
        evict(WindowScore(8, pooling="max")),
        evict(NormScore()),
        evict(NormScore(), HeadShare(0.5)),
        evict(NormScore(), QueryShare(8, None, 1, 1)),
    ]
    assert len({digest([edit], None) for edit in different} - {None}) == len(different)


def test_mixed_vectors_are_part_of_a_digest() -> None:
    def mixed(*numbers: float) -> HeadMix:
        return HeadMix(HeadSet((1,)), Rows(), 1.0, np.array(numbers, "<f4").tobytes(), 0)

    digests = {digest([mixed(*numbers)], None) for numbers in ((1, 2), (2, 1), (1, 2))}
    assert len(digests) == 2 and None not in digests
