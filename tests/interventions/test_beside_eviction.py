"""What may stand beside an eviction method in one request."""

from typing import Any

import pytest
from evictors import IN_DECODE, each_method, run
from intervention_views import MODEL, prompt

from heed_interventions import InterventionError, Resolution, parse, resolve
from heed_kernels.evict import Evict

SPAN = [{"start": 50, "end": 90}]


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
