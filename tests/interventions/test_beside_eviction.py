"""What may stand beside an eviction method in one request."""

import re
from pathlib import Path
from typing import Any

import pytest
from evictors import EVICTORS, IN_DECODE, each_method, run
from intervention_views import MODEL, VISION, prompt

from heed_interventions import METHODS, ImageSpan, InterventionError, Resolution, parse, resolve
from heed_kernels.evict import Evict

SPAN = [{"start": 50, "end": 90}]
IMAGE = ImageSpan(4, 68)
COVERING, SHORT = 70, 67
"""First tokens with the whole image, and with all of it but its last token."""
BESIDE_IMAGES: list[dict[str, Any]] = [
    {"method": "pai"},
    {"method": "paint"},
    {"method": "vaf", "layers": "all", "sup_para": 0.9},
    {"method": "avar", "alpha_sys": 0.1},
    {"method": "adaptvis", "w": 2},
    {"method": "var"},
    {"method": "vhr"},
    {"method": "vhr", "mode": "masked", "rows": "all"},
    {"method": "spin"},
    {"method": "gift", "saliency_layer": 0, "layers": [1, 2]},
]
IN_PROMPT_ROWS: dict[str, dict[str, Any]] = {
    "emphasis": {"rows": "prompt"},
    "var": {"decode": False},
    "act": {"decode": "off"},
}
OF_THE_PAGE: dict[str, dict[str, Any]] = {
    item["method"]: item
    for item in (
        {"method": "head_gain", "gain": 2},
        {"method": "attention_scale", "q_scale": 2},
        {"method": "zerotuning", "gamma": 2, "position": 5},
        {"method": "emphasis", "spans": SPAN, "alpha": 0.5},
        {"method": "locore"},
        {"method": "act", "layers": [1]},
        *reversed(BESIDE_IMAGES),
    )
}


def beside(name: str, *others: dict[str, Any], **fields: Any) -> Resolution:
    both = [resolve(parse(order), MODEL, prompt(400)) for order in _orders(name, others, fields)]
    assert both[0].digest == both[1].digest
    return both[0]


def _orders(
    name: str, others: tuple[dict[str, Any], ...], fields: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    mine = {"method": name, "keep": 0.8, **fields}
    return [[mine, *others], [*others, mine]]


def conflict(name: str, other: dict[str, Any], **fields: Any) -> str:
    messages = set()
    for order in _orders(name, (other,), fields):
        with pytest.raises(InterventionError) as caught:
            resolve(parse(order), MODEL, prompt(400))
        assert caught.value.reason == "composition"
        messages.add(caught.value.message)
    assert len(messages) == 1
    return messages.pop()


@each_method
def test_only_one_method_decides_what_stays(name: str) -> None:
    other = "knorm" if name != "knorm" else "keydiff"
    assert "only one" in conflict(name, {"method": "streaming_llm", "window": 16})
    for order in (name, other), (other, name):
        with pytest.raises(InterventionError, match="only one") as caught:
            resolve(parse([{"method": each, "keep": 0.8} for each in order]), MODEL, prompt(400))
        assert caught.value.param == "interventions.1"
    with pytest.raises(InterventionError, match="only once"):
        resolve(parse([{"method": name, "keep": 0.8}] * 2), MODEL, prompt(400))


@each_method
def test_zerotuning_needs_its_position_among_the_sinks(name: str) -> None:
    tuning = {"method": "zerotuning", "gamma": 2, "position": 3}
    assert "`sinks`" in conflict(name, tuning, sinks=3)
    assert len(beside(name, tuning, sinks=4).edits) == 2


@each_method
def test_emphasis_stands_beside_eviction_in_prompt_rows_only(name: str) -> None:
    emphasis = {"method": "emphasis", "spans": SPAN, "alpha": 0.5}
    for rows in ("all", "generated", "last_and_generated"):
        assert "prompt rows" in conflict(name, {**emphasis, "rows": rows})
    assert len(beside(name, {**emphasis, "rows": "prompt"}).edits) == 2


@each_method
def test_locore_stands_beside_eviction_that_leaves_the_answer_alone(name: str) -> None:
    locore = {"method": "locore"}
    if name in IN_DECODE:
        assert "`decode` off" in conflict(name, locore)
        assert len(beside(name, locore, decode=False).edits) == 2
    else:
        assert len(beside(name, locore).edits) == 2


@each_method
def test_what_treats_all_keys_alike_stands_beside_eviction(name: str) -> None:
    gain = {"method": "head_gain", "gain": 2}
    scale = {"method": "attention_scale", "q_scale": 2}
    resolution = beside(name, gain, scale)
    assert len(resolution.edits) == 3
    assert resolution.publication_limit == 400


@each_method
def test_act_stands_beside_eviction_in_the_prompt_only(name: str) -> None:
    for decode in ("frozen", "running"):
        act = {"method": "act", "decode": decode, "layers": [1]}
        assert "prompt rows" in conflict(name, act)
    resolution = beside(name, {"method": "act", "decode": "off", "layers": [1]})
    assert resolution.cache == "private"


@pytest.mark.parametrize("length", [40, 140, 400])
@each_method
def test_act_of_segments_stands_beside_eviction_that_scores_no_rows_together(
    name: str, length: int
) -> None:
    """At 140 tokens a step would end at row 128, in the window."""
    act = {"method": "act", "decode": "off", "stats": "causal", "layers": [1]}
    edit = run(name, length, keep=0.8)[1]
    for order in _orders(name, (act,), {}):
        if edit is None or edit.together == 1:
            kinds = [type(each) for each in resolve(parse(order), MODEL, prompt(length)).edits]
            assert kinds.count(Evict) == (edit is not None)
            continue
        with pytest.raises(InterventionError, match="`stats`") as caught:
            resolve(parse(order), MODEL, prompt(length))
        assert (caught.value.status, caught.value.reason) == (400, "composition")


def allowed(name: str, other: dict[str, Any], **fields: Any) -> bool:
    """Whether the two stand beside each other, in either order, in a prompt with an image."""
    reasons = set()
    for order in _orders(name, (other,), fields):
        try:
            resolve(parse(order), VISION, prompt(400, (IMAGE,)), allow_privileged=True)
            reasons.add(None)
        except InterventionError as error:
            reasons.add(error.reason)
    assert reasons in ({None}, {"composition"})
    return reasons == {None}


@pytest.mark.parametrize("other", BESIDE_IMAGES, ids=lambda item: "-".join(map(str, item.values())))
@each_method
def test_an_image_is_edited_in_the_answer_only_where_its_keys_stay_in_place(
    name: str, other: dict[str, Any]
) -> None:
    never, always = other["method"] in ("gift", "var"), other["method"] == "adaptvis"
    assert allowed(name, other, sinks=COVERING) == (not never)
    assert allowed(name, other, sinks=SHORT) == always


@each_method
def test_a_ranking_by_keys_that_all_move_is_refused_though_other_edits_of_them_are_not(
    name: str,
) -> None:
    whole = prompt(400, (ImageSpan(4, 400),))
    mine = {"method": name, "keep": 0.8, "sinks": 4}
    if name not in IN_DECODE:
        assert resolve(parse([mine, {"method": "pai"}]), VISION, whole).edits
    with pytest.raises(InterventionError, match="spin acts on chosen"):
        resolve(parse([mine, {"method": "spin"}]), VISION, whole)


def test_the_page_on_composition_says_what_may_stand_beside_an_eviction() -> None:
    page = (Path(__file__).parents[2] / "docs/composition.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", page.partition("## Eviction")[2], re.MULTILINE)
    said = {method: text for names, text in rows for method in re.findall(r"`(\w+)`", names)}
    assert set(said) == set(METHODS) - set(EVICTORS) - {"streaming_llm"}
    for method, text in said.items():
        item = OF_THE_PAGE[method]
        restricted = item | IN_PROMPT_ROWS.get(method, {})
        verdicts = [
            allowed("knorm", item),
            allowed("knorm", item, sinks=COVERING if method != "emphasis" else 100),
            allowed("knorm", restricted),
        ]
        first = re.match(r"yes|no|where|in prompt rows only", text)
        assert first, (method, text)
        expected = {
            "yes": [True, True, True],
            "no": [False, False, False],
            "where": [False, True, False],
            "in prompt rows only": [False, method == "emphasis", True],
        }
        assert verdicts == expected[first[0]], method
