"""ACT: what its parameters become, and what is refused."""

from dataclasses import replace

import pytest
from intervention_views import MODEL, prompt

from heed_interventions import InterventionError, parse, resolve
from heed_interventions.act import ACT
from heed_interventions.registry import method_schema
from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)

DEFAULT_HEADS = HeadSet((0, 0, 0xFF, 0))  # layers 2 to L - 2 of four


def edits_of(**fields: object) -> tuple[FindKeys, MassTransfer]:
    resolution = resolve(parse([{"method": "act", **fields}]), MODEL, prompt())
    find, transfer = resolution.edits
    assert isinstance(find, FindKeys) and isinstance(transfer, MassTransfer)
    for edit in (find, transfer):
        check_edit(edit)
    return find, transfer


def test_act_finds_sinks_in_all_prompt_rows_and_lets_them_keep_four_tenths() -> None:
    find, transfer = edits_of()
    assert find == FindKeys(
        DEFAULT_HEADS, Rows(0, 20), 5.0, 1, 64, KeyRanges(()), True, 0,
        relative=True, prompt=20, ahead=True,
    )  # fmt: skip
    expected = MassTransfer(DEFAULT_HEADS, Rows(), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0)
    assert transfer == expected


def test_a_threshold_may_be_absolute_or_over_the_number_of_rows() -> None:
    absolute, _ = edits_of(tau=0.15)
    assert (absolute.threshold, absolute.relative) == (0.15, False)
    relative, _ = edits_of(alpha_over_n=3)
    assert (relative.threshold, relative.relative) == (3, True)


@pytest.mark.parametrize(
    ("decode", "counted", "edited"),
    [("frozen", 20, OPEN), ("running", OPEN, OPEN), ("off", 20, 20)],
)
def test_generated_rows_are_counted_and_edited_as_decode_says(
    decode: str, counted: int, edited: int
) -> None:
    for stats in ("full", "causal"):
        find, transfer = edits_of(decode=decode, stats=stats)
        assert (find.rows, transfer.rows) == (Rows(0, counted), Rows(0, edited))
        assert find.until == edited
        assert find.ahead == (stats == "full")


def test_position_0_can_be_protected_in_place_of_the_first_flagged_key() -> None:
    find, _ = edits_of(protect="position_0", max_sinks=3, min_rows=7)
    assert (find.protected, find.protect_first) == (KeyRanges(((0, 1),)), False)
    assert (find.most, find.least_rows) == (3, 7)


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"tau": 0.1, "alpha_over_n": 5}, "alpha_over_n", "exclusive"),
        ({"tau": 0}, "tau", "out_of_bounds"),
        ({"tau": 1.1}, "tau", "out_of_bounds"),
        ({"tau": "0.1"}, "tau", "wrong_type"),
        ({"tau": float("nan")}, "tau", "out_of_bounds"),
        ({"alpha_over_n": 101}, "alpha_over_n", "out_of_bounds"),
        ({"beta": -0.1}, "beta", "out_of_bounds"),
        ({"beta": 10**400}, "beta", "out_of_bounds"),
        ({"max_sinks": 65}, "max_sinks", "out_of_bounds"),
        ({"max_sinks": 0}, "max_sinks", "out_of_bounds"),
        ({"min_rows": 0}, "min_rows", "out_of_bounds"),
        ({"min_rows": 2.0}, "min_rows", "wrong_type"),
        ({"stats": "chunked"}, "stats", "out_of_bounds"),
        ({"decode": None}, "decode", "wrong_type"),
        ({"protect": "bos"}, "protect", "out_of_bounds"),
        ({"layers": [4]}, "layers.0", "layer"),
        ({"heads": {"2": [8]}}, "heads.2.0", "head"),
        ({"gamma": 1}, "gamma", "unknown_field"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    fields: dict[str, object], param: str, reason: str
) -> None:
    with pytest.raises(InterventionError) as caught:
        resolve(parse([{"method": "act", **fields}]), MODEL, prompt())
    assert (caught.value.param, caught.value.reason) == (f"interventions.0.{param}", reason)
    assert caught.value.status == 400


def test_the_schema_says_which_layers_are_taken_where_none_are_given() -> None:
    layers = method_schema(ACT)["properties"]["layers"]
    assert "default" not in layers and "2 to L - 2" in layers["description"]
    everywhere, _ = edits_of(layers="all")
    assert everywhere.on == HeadSet((0xFF,) * 4)


def test_a_prompt_longer_than_a_step_is_refused_with_the_limit_and_the_way_out() -> None:
    model = replace(MODEL, longest_step=19)
    with pytest.raises(InterventionError, match=r"19 tokens here.*20.*causal") as caught:
        resolve(parse([{"method": "act"}]), model, prompt())
    assert (caught.value.param, caught.value.reason) == ("interventions.0.stats", "context")
    assert resolve(parse([{"method": "act"}]), model, prompt(19)).edits
    assert resolve(parse([{"method": "act", "stats": "causal"}]), model, prompt()).edits
    assert not resolve(parse([{"method": "act", "beta": 1}]), model, prompt()).edits


def test_a_model_of_three_layers_has_to_be_told_which_ones() -> None:
    model = replace(MODEL, layers=3)
    with pytest.raises(InterventionError, match="layers") as caught:
        resolve(parse([{"method": "act"}]), model, prompt())
    assert caught.value.param == "interventions.0.layers"


def test_act_stands_in_a_list_once_and_not_beside_hidden_keys() -> None:
    twice: list[object] = [{"method": "act"}, {"method": "act", "layers": [0]}]
    with pytest.raises(InterventionError, match="only once"):
        resolve(parse(twice), MODEL, prompt())
    for pair in (
        [{"method": "act"}, {"method": "streaming_llm", "window": 16}],
        [{"method": "streaming_llm", "window": 16}, {"method": "act"}],
    ):
        with pytest.raises(InterventionError, match="hides keys") as caught:
            resolve(parse(pair), MODEL, prompt())
        assert caught.value.reason == "composition"


def cache_of(item: dict[str, object], length: int = 20) -> tuple[str, str | None, int | None]:
    resolution = resolve(parse([item]), MODEL, prompt(length))
    return resolution.cache, resolution.digest, resolution.publication_limit


def test_looking_ahead_is_private_and_causal_statistics_are_salted() -> None:
    assert cache_of({"method": "act"}) == ("private", None, 0)
    kind, digest, limit = cache_of({"method": "act", "stats": "causal"})
    assert (kind, limit) == ("salted", 20) and digest


def test_causal_prompts_share_what_does_not_depend_on_their_length_or_on_generated_rows() -> None:
    causal: dict[str, object] = {"method": "act", "stats": "causal"}
    _, digest, _ = cache_of(causal)
    same: list[dict[str, object]] = [{"decode": "running"}, {"decode": "off"}, {"alpha_over_n": 5}]
    for fields in same:
        assert cache_of({**causal, **fields}, length=90)[1] == digest, fields
    other: list[dict[str, object]] = [
        {"tau": 0.1}, {"beta": 0.5}, {"min_rows": 2}, {"protect": "position_0"}, {"layers": [1, 2]},
    ]  # fmt: skip
    for fields in other:
        assert cache_of({**causal, **fields})[1] != digest, fields


def test_a_set_with_act_in_it_is_private_and_other_items_keep_their_class() -> None:
    both = [{"method": "zerotuning", "gamma": 2}, {"method": "act"}]
    resolution = resolve(parse(both), MODEL, prompt())
    assert (resolution.cache, resolution.publication_limit) == ("private", 0)
    assert [report["cache"] for report in resolution.reports] == ["salted", "private"]
