"""Layers, heads, rows and spans, resolved against a model and a prompt."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intervention_views import EVERY_HEAD, MODEL, VISION, prompt

from heed_interventions import (
    ImageSpan,
    InterventionError,
    ModelView,
    PromptView,
    TokenText,
    parse,
    resolve,
)
from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers
from heed_interventions.spans import MOST_OCCURRENCES, complement, union
from heed_interventions.views import RequestView
from heed_kernels.edits import OPEN, Edit, HeadGain, KeyBias, KeyRanges, Rows


def masks(model: ModelView = MODEL, **fields: object) -> tuple[int, ...]:
    methods = parse([{"method": "zerotuning", "gamma": 2, **fields}])
    (edit,) = resolve(methods, model, prompt()).edits
    assert isinstance(edit, KeyBias)
    return edit.on.masks


def error(raw: list[object], model: ModelView = MODEL, view: PromptView | None = None):  # type: ignore[no-untyped-def]
    with pytest.raises(InterventionError) as caught:
        resolve(parse(raw), model, view or prompt(), allow_privileged=True)
    return caught.value


def rows(scope: str, model: ModelView = MODEL, view: PromptView | None = None) -> Rows:
    methods = parse([{"method": "head_gain", "gain": 2, "rows": scope}])
    (edit,) = resolve(methods, model, view or prompt()).edits
    assert isinstance(edit, HeadGain)
    return edit.rows


def test_all_layers_and_heads_are_the_default() -> None:
    assert masks() == masks(layers="all", heads="all") == EVERY_HEAD


def test_negative_layers_count_from_the_last_and_duplicates_collapse() -> None:
    assert masks(layers=[-1, 3, 0, -4]) == (0xFF, 0, 0, 0xFF)


def test_a_list_of_heads_is_used_in_every_selected_layer() -> None:
    assert masks(layers=[1, 2], heads=[0, 7, 7]) == (0, 0x81, 0x81, 0)


def test_an_object_of_heads_says_the_layers_itself() -> None:
    assert masks(heads={"0": [1], "-1": [2], "3": [3]}) == (2, 0, 0, 0b1100)


@pytest.mark.parametrize(
    ("fields", "param", "reason", "allowed"),
    [
        ({"layers": [0, 4]}, "layers.1", "layer", "0 to 3"),
        ({"layers": [-5]}, "layers.0", "layer", "-4 to -1"),
        ({"heads": [0, 1, 8]}, "heads.2", "head", "0 to 7"),
        ({"heads": {"4": [0]}}, "heads.4", "layer", "0 to 3"),
        ({"heads": {"-1": [0, 9]}}, "heads.-1.1", "head", "0 to 7"),
    ],
)
@pytest.mark.parametrize("gamma", [2, 1])
def test_ids_that_the_model_lacks_are_refused_even_where_nothing_would_be_done(
    fields: dict[str, object], param: str, reason: str, allowed: str, gamma: int
) -> None:
    found = error([{"method": "zerotuning", "gamma": gamma, **fields}])
    assert (found.param, found.reason) == (f"interventions.0.{param}", reason)
    assert allowed in found.message
    assert found.method == "zerotuning"


class Middle(Method):
    """A method with layers of its own."""

    title, summary, paper = "Middle", "Test.", "none"
    cache = CacheClass.SALTED
    method: Literal["middle"] = "middle"
    layers: Layers = "all"

    def default_layers(self, model: ModelView) -> range:
        return range(2, 30)

    def is_neutral(self, model: ModelView) -> bool:
        return False

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield HeadGain(self.on(request), self.on_rows(request), 2.0, request.source)


def test_layers_of_the_method_itself_are_clipped_to_the_model() -> None:
    assert resolve([Middle()], MODEL, prompt()).heads[0].masks == (0, 0, 0xFF, 0xFF)  # type: ignore[union-attr]
    written = resolve([Middle(layers="all")], MODEL, prompt())
    assert written.heads[0].masks == EVERY_HEAD  # type: ignore[union-attr]


def test_layers_of_the_method_that_clip_to_nothing_ask_for_layers() -> None:
    small = ModelView(layers=2, query_heads=8, kv_heads=2, head_dim=16, max_length=512)
    with pytest.raises(InterventionError, match="say which `layers`") as caught:
        resolve([Middle()], small, prompt())
    assert (caught.value.param, caught.value.reason) == ("interventions.0.layers", "layer")
    assert resolve([Middle(layers=[0])], small, prompt()).edits


def test_rows_are_counted_from_the_prompts_length() -> None:
    assert rows("all") == Rows(0, OPEN)
    assert rows("prompt") == Rows(0, 20)
    assert rows("generated") == Rows(20, OPEN)
    assert rows("last_and_generated") == Rows(19, OPEN)


def test_rows_after_the_image_begin_where_the_last_one_ends() -> None:
    view = prompt(images=(ImageSpan(2, 5), ImageSpan(8, 12)))
    assert rows("after_image", VISION, view) == Rows(12, OPEN)


@pytest.mark.parametrize("model", [MODEL, VISION])
def test_rows_after_the_image_need_an_image(model: ModelView) -> None:
    found = error([{"method": "head_gain", "gain": 2, "rows": "after_image"}], model)
    assert (found.param, found.reason) == ("interventions.0.rows", "vision")


def spans(*items: object, view: PromptView | None = None) -> object:
    methods = parse([{"method": "emphasis", "spans": list(items)}])
    return resolve(methods, MODEL, view or prompt(30)).reports[0]["spans"]


def test_spans_are_reported_as_token_ranges_in_the_order_of_the_request() -> None:
    assert spans({"start": 9, "end": 12}, {"text": "cde"}) == [[9, 12], [2, 5]]


def test_an_occurrence_is_counted_from_one_and_all_gives_each() -> None:
    assert spans({"text": "bc"}) == [[1, 3]]
    assert spans({"text": "bc", "occurrence": 2}) == [[27, 29]]
    assert spans({"text": "bc", "occurrence": "all"}) == [[1, 3], [27, 29]]


@pytest.mark.parametrize(
    ("span", "param"),
    [
        ({"text": "acb"}, "spans.0.text"),
        ({"text": "acb", "occurrence": "all"}, "spans.0.text"),
        ({"text": "bc", "occurrence": 3}, "spans.0.occurrence"),
        ({"start": 3, "end": 3}, "spans.0.end"),
        ({"start": 4, "end": 3}, "spans.0.end"),
        ({"start": 3, "end": 31}, "spans.0.end"),
    ],
)
def test_spans_that_are_not_in_the_prompt_are_refused(span: object, param: str) -> None:
    found = error([{"method": "emphasis", "spans": [span]}], view=prompt(30))
    assert (found.param, found.reason) == (f"interventions.0.{param}", "span")


def test_a_text_cannot_be_searched_for_without_a_tokenizer() -> None:
    found = error([{"method": "emphasis", "spans": [{"text": "a"}]}], view=PromptView(20))
    assert found.reason == "span"
    assert "`start` and `end`" in found.message


def test_the_text_is_built_only_when_a_span_asks_for_it_and_only_once() -> None:
    calls = []
    inner = prompt(30).text
    assert inner is not None

    def counted():  # type: ignore[no-untyped-def]
        calls.append(1)
        return inner()

    resolve(parse([{"method": "zerotuning", "gamma": 2}]), MODEL, PromptView(30, counted))
    assert calls == []
    twice = [{"method": "emphasis", "spans": [{"text": "a"}, {"text": "b"}]}] * 2
    resolve(parse(twice), MODEL, PromptView(30, counted))
    assert calls == [1]


ranges = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (min(pair), max(pair)))
)


@given(ranges)
def test_union_and_complement_partition_the_prompt(items: list[tuple[int, int]]) -> None:
    inside = {p for start, end in items for p in range(start, end)}
    united, outside = union(items), complement(items, 20)
    assert [p for start, end in united for p in range(start, end)] == sorted(inside)
    assert [p for start, end in outside for p in range(start, end)] == sorted({*range(20)} - inside)
    assert all(a[1] < b[0] for a, b in pairwise(united))
    assert isinstance(KeyRanges(tuple(outside)), KeyRanges)


class CountedText(TokenText):
    """One character a token; `looked` counts the occurrences that were looked at."""

    def __init__(self, text: str) -> None:
        super().__init__(text, range(len(text)), range(1, len(text) + 1))
        self.looked = 0

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        self.looked += 1
        return super().tokens(start, end)

    def as_prompt(self) -> PromptView:
        return PromptView(len(self.text), lambda: self)


EVERY_A = {"text": "a", "occurrence": "all"}


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([EVERY_A], "spans.0.occurrence"),
        ([{"text": "b" * 4, "occurrence": 1000}, {"text": "b", "occurrence": 25}], "spans.1.occurrence"),
        ([{"text": "b"}, {"text": "b" * 5, "occurrence": 1024}], "spans.1.occurrence"),
    ],
)  # fmt: skip
def test_a_search_ends_where_the_spans_come_to_too_many_occurrences(
    items: list[object], param: str
) -> None:
    text = CountedText("a" * 30_000 + "b" * 30_000)
    found = error([{"method": "emphasis", "spans": items}], view=text.as_prompt())
    assert (found.param, found.reason) == (f"interventions.0.{param}", "span")
    assert text.looked <= MOST_OCCURRENCES + 1


def test_as_many_occurrences_as_are_allowed_are_found_and_looked_for_once() -> None:
    text = CountedText("ab" * 100)
    items = [EVERY_A] * 5 + [{"text": "b", "occurrence": 100}] * 5
    both = [{"method": "emphasis", "spans": items}] * 2
    reports = resolve(parse(both), MODEL, text.as_prompt()).reports
    every_a = [[at, at + 1] for at in range(0, 200, 2)]
    assert [each["spans"] for each in reports] == [every_a * 5 + [[199, 200]] * 5] * 2
    assert text.looked == 200
    most = CountedText("ab" * MOST_OCCURRENCES)
    every_one = spans({"text": "ab", "occurrence": "all"}, view=most.as_prompt())
    assert every_one == [[at, at + 2] for at in range(0, 2 * MOST_OCCURRENCES, 2)]


def test_pieces_of_images_count_as_well() -> None:
    images = tuple(ImageSpan(3 * at, 3 * at + 2) for at in range(100))
    items = [{"image": "all"}] * 11
    found = error([{"method": "emphasis", "spans": items}], VISION, prompt(400, images))
    assert (found.param, found.reason) == ("interventions.0.spans.10.image", "span")
