"""The methods that evict, as a client sees them: budgets, reports, refusals, metrics."""

from __future__ import annotations

import time
from typing import Any

import pytest
from eviction_cases import EVICTION, P, edit
from live_server import LiveServer, together
from test_refusals import assert_refused

SHARING = {"pyramidkv", "adakv", "task_kv", "tappa"}
TOKENS = 12
each_method = pytest.mark.parametrize("method", EVICTION)


@each_method
def test_a_report_says_what_was_kept_and_meets_the_budget(server: LiveServer, method: str) -> None:
    prompt = server.prompt(P, start=3)
    plain = server.fresh(prompt, max_tokens=TOKENS)
    found = server.fresh(prompt, [edit(method, report="full")], max_tokens=TOKENS)
    (report,) = found.report or []
    assert (report["status"], report["cache"], report["budget"]) == ("applied", "shared", 90)
    layers = server.shape.num_hidden_layers
    kept = [heads for _, heads in sorted(report["kept"].items(), key=lambda item: int(item[0]))]
    assert [len(heads) for heads in kept] == [server.shape.num_key_value_heads] * layers
    sizes = [len(positions) for heads in kept for positions in heads]
    assert sum(sizes) == 90 * len(sizes)
    assert (len(set(sizes)) > 1) <= (method in SHARING)
    for heads in kept:
        for positions in heads:
            assert positions == sorted(set(positions)) and positions[-1] < P
    assert report["evicted_tokens"] == P - 90
    assert report["kept_tokens"] == 90 + TOKENS - 1
    assert report["freed_bytes"] >= 0
    assert ("realised_saving" in report) == (method in SHARING)
    # The first token comes from the whole prompt, the others do not.
    assert found.logprobs[0] == pytest.approx(plain.logprobs[0], abs=1e-5)
    assert found.tokens[0] == plain.tokens[0]
    assert found.logprobs != plain.logprobs


@each_method
def test_what_keeps_everything_is_neutral_and_plain(server: LiveServer, method: str) -> None:
    prompt = server.prompt(P, start=4)
    plain = server.fresh(prompt, max_tokens=TOKENS)
    for fields in ({"keep": 1}, {"keep": None, "budget": server.card["max_model_len"]}):
        found = server.fresh(prompt, [edit(method, **fields)], max_tokens=TOKENS)
        (report,) = found.report or []
        assert report["status"] == "neutral" and report["reason"]
        assert (found.tokens, found.logprobs) == (plain.tokens, plain.logprobs)


@each_method
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"budget": 100}, "keep"),
        ({"keep": None}, "budget"),
        ({"keep": None, "budget": 20, "sinks": 10, "recent": 11}, "budget"),
        ({"keep": 0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"keep": None, "budget": 0}, "budget"),
        ({"keep": 0.5, "layers": [0]}, "layers"),
    ],
    ids=str,
)
def test_bad_input_is_refused_by_its_name(
    server: LiveServer, method: str, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        body = {"interventions": [edit(method) | fields], "stream": stream}
        answer = server.raw_completion(server.prompt(40), **body)
        assert_refused(answer, f"interventions.0.{param}")


def test_two_that_decide_what_stays_are_refused(server: LiveServer) -> None:
    for other in (edit("knorm"), {"method": "streaming_llm", "window": 16}):
        answer = server.raw_completion(server.prompt(40), interventions=[edit("tova"), other])
        assert_refused(answer, "interventions.1")


@pytest.mark.parametrize("method", ["h2o", "tova"])
def test_eviction_goes_on_in_decode_while_the_answer_grows(server: LiveServer, method: str) -> None:
    """Back to the budget at every full block: at the end there is at most a block more."""
    block = server.block_size
    tokens = 3 * block
    fields = {"keep": None, "budget": 40, "report": "full"}
    found = server.fresh(server.prompt(100), [edit(method, **fields)], max_tokens=tokens)
    (report,) = found.report or []
    assert 40 <= report["kept_tokens"] < 40 + block
    assert report["kept_tokens"] + report["evicted_tokens"] == 100 + tokens - 1
    last = (100 + tokens - 1) // block * block
    for heads in report["kept"].values():
        assert all(len(positions) == 40 and positions[-1] < last for positions in heads)


@pytest.mark.parametrize("method", ["snapkv", "adakv", "h2o"])
def test_choices_of_one_prompt_keep_the_same_keys_and_free_its_blocks_once(
    cramped_server: LiveServer, method: str
) -> None:
    """200 tokens in blocks of 32, and no block gets full in the 8 of the answer."""
    body = {"n": 3, "temperature": 0.8, "seed": 5, "max_tokens": 8, "ignore_eos": True}
    body["interventions"] = [edit(method, report="full")]
    answer = cramped_server.raw_completion(cramped_server.prompt(200, start=17), **body).json()
    reports = [choice["interventions"][0] for choice in answer["choices"]]
    kept = [report["kept"] for report in reports]
    assert len(kept) == 3 and kept[0] == kept[1] == kept[2]
    blocks, freed = 200 // 32, [report["freed_blocks"] for report in reports]
    if method == "h2o":  # it has to see every row, so that each choice has a prompt of its own
        assert freed == [blocks - -(-60 // 32)] * 3
    else:
        assert sum(freed) <= blocks


def test_what_was_let_go_is_counted_by_method(server: LiveServer) -> None:
    names = ("heed_kv_tokens_evicted_total", "heed_kv_blocks_freed_total")
    before = [server.metric(name, method="knorm") for name in names]
    together([lambda: server.fresh(server.prompt(P), [edit("knorm")], max_tokens=4)] * 3)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        after = [server.metric(name, method="knorm") for name in names]
        if after[0] - before[0] >= 3 * (P - 90):
            break
        time.sleep(0.5)
    assert after[0] - before[0] == 3 * (P - 90)
    assert after[1] - before[1] == 3 * ((P // server.block_size) - -(-90 // server.block_size))


@pytest.mark.slow
@each_method
def test_in_bfloat16_budgets_are_met_and_a_crowd_changes_no_kept_key(
    bfloat16_server: LiveServer, method: str
) -> None:
    """Which keys score highest is decided from rounded ones: alike alone, again, and beside others."""
    server, edits = bfloat16_server, [edit(method, report="full")]
    prompts = [server.prompt(P, start=6 + i) for i in range(3)]
    alone = [server.fresh(prompt, edits, max_tokens=TOKENS) for prompt in prompts]
    crowd = together([lambda p=p: server.fresh(p, edits, max_tokens=TOKENS) for p in prompts])
    for one, other in zip(alone, crowd, strict=True):
        (report,), (beside,) = one.report or [], other.report or []
        sizes = [len(keys) for heads in report["kept"].values() for keys in heads]
        assert sum(sizes) == 90 * len(sizes)
        assert report["evicted_tokens"] == P - 90
        assert report["kept"] == beside["kept"] and one.tokens == other.tokens
