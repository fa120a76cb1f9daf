"""ACT on the running server: its report, and prompts that one step computes whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conformance import assert_close
from live_server import LiveServer, together

ACT: dict[str, Any] = {"method": "act", "beta": 0.1, "layers": "all"}


def test_the_report_says_how_many_sinks_there_are_and_what_they_gave(server: LiveServer) -> None:
    (report,) = server.complete(server.prompt(200), [ACT], max_tokens=6).report or []
    assert report["cache"] == "private" and report["status"] == "applied"
    assert (report["prompt_rows"], report["cached_rows"], report["generated_rows"]) == (200, 0, 5)
    assert set(report["sinks"]) == {str(layer) for layer in range(server.shape.num_hidden_layers)}
    assert sum(report["sinks"].values()) > 0 and 0 < report["moved_mass"] < 1
    by_layer = report["layer_moved_mass"]
    assert list(by_layer) == list(report["sinks"])
    # Every layer has as many heads here.
    assert sum(by_layer.values()) / len(by_layer) == pytest.approx(report["moved_mass"], abs=2e-6)
    assert all((by_layer[layer] > 0) == (count > 0) for layer, count in report["sinks"].items())
    for layer, positions in report["sink_positions"].items():
        assert positions == sorted(positions) and len(positions) <= min(8, report["sinks"][layer])
        assert len(positions) > 0 and positions[-1] < 200
    assert "sink_keys" not in report


def test_the_full_report_has_the_sinks_of_each_head(server: LiveServer) -> None:
    edits = [{**ACT, "report": "full", "max_sinks": 2, "heads": [0, 3]}]
    (report,) = server.complete(server.prompt(200), edits).report or []
    for layer, heads in report["sink_keys"].items():
        assert set(heads) <= {"0", "3"}
        assert all(1 <= len(keys) <= 2 for keys in heads.values())
        assert sum(map(len, heads.values())) == report["sinks"][layer]


def test_rows_that_are_not_edited_are_not_counted_as_generated(server: LiveServer) -> None:
    edits = [{**ACT, "decode": "off"}]
    (report,) = server.complete(server.prompt(90), edits, max_tokens=6).report or []
    assert (report["prompt_rows"], report["generated_rows"]) == (90, 0)


def test_causal_rows_come_out_of_the_prefix_cache_with_their_statistics(server: LiveServer) -> None:
    prompt = server.prompt(400, start=33)
    edits = [{**ACT, "stats": "causal", "report": "full"}]
    fresh = server.fresh(prompt, edits)
    first, again = (server.complete(prompt, edits) for _ in range(2))
    assert again.cached_tokens == 256
    longer = server.complete([*prompt, *server.prompt(60)], edits)
    assert longer.cached_tokens == 256
    for found in (first, again):
        assert_close(found.logprobs, fresh.logprobs, 2e-5)
        (report,), (expected,) = found.report or [], fresh.report or []
        assert report["sink_keys"] == expected["sink_keys"]
        assert report["moved_mass"] == pytest.approx(expected["moved_mass"], abs=1e-5)
        assert report["cache"] == "salted"
    assert (again.report or [])[0]["cached_rows"] == 256


@pytest.mark.parametrize("stats", ["full", "causal"])
def test_without_sinks_the_counts_are_zero_and_the_result_is_plain(
    server: LiveServer, stats: str
) -> None:
    prompt = server.prompt(129)
    edits = [{**ACT, "stats": stats, "tau": 1}]
    plain = server.fresh(prompt, prompt_logprobs=True)
    edited = server.fresh(prompt, edits, prompt_logprobs=True)
    (report,) = edited.report or []
    assert report["status"] == "applied" and report["moved_mass"] == 0
    assert not any(report["layer_moved_mass"].values())
    assert not any(report["sinks"].values()) and not report["sink_positions"]
    assert_close(edited.logprobs, plain.logprobs, 1e-5)
    assert_close(edited.prompt_logprobs, plain.prompt_logprobs, 1e-5)


def test_the_smaller_beta_the_more_is_moved(server: LiveServer) -> None:
    moved = [
        (server.complete(server.prompt(150), [{**ACT, "layers": [0], "beta": beta}]).report or [])[
            0
        ]["moved_mass"]
        for beta in (0.8, 0.4, 0)
    ]
    assert moved == pytest.approx([moved[2] * share for share in (0.2, 0.6, 1)], abs=1e-5)
    assert moved[2] > 0.01


def test_every_choice_and_the_stream_report_their_sinks(server: LiveServer) -> None:
    prompt = server.prompt(120)
    fields: dict[str, Any] = {"interventions": [ACT], "max_tokens": 5, "ignore_eos": True}
    answer = server.raw_completion(prompt, n=3, temperature=1, seed=4, **fields).json()
    reports = [choice["interventions"][0] for choice in answer["choices"]]
    assert len(reports) == 3 and reports[0]["sinks"]
    assert all(report == reports[0] for report in reports)
    body = {"model": server.model, "prompt": prompt, "stream": True, "temperature": 0, **fields}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        events = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    (streamed,) = json.loads(events[-1])["interventions"]
    assert streamed == reports[0]


def test_long_prompts_and_many_answers_go_on_beside_each_other(server: LiveServer) -> None:
    """Whole prompts of most of a step among plain ones: each equals the same request alone."""
    asked = [
        (server.prompt(1400 - 90 * i if i % 3 else 60 + i, start=i), [ACT] if i % 3 else [])
        for i in range(9)
    ]
    alone = [server.fresh(prompt, edits, max_tokens=40) for prompt, edits in asked]
    crowd = together(
        [lambda pair=pair: server.fresh(pair[0], pair[1], max_tokens=40) for pair in asked]
    )
    for (prompt, edits), one, other in zip(asked, crowd, alone, strict=True):
        what = f"prompt of {len(prompt)}"
        assert one.tokens == other.tokens, what
        assert_close(one.logprobs, other.logprobs, 2e-5 if edits else 0, what)


@pytest.mark.parametrize(
    ("edits", "param"),
    [
        ([{**ACT, "tau": 0.1, "alpha_over_n": 5}], "interventions.0.alpha_over_n"),
        ([{**ACT, "tau": 0}], "interventions.0.tau"),
        ([ACT, ACT], "interventions.1.method"),
        ([ACT, {"method": "streaming_llm", "window": 32}], "interventions.1"),
    ],
)
def test_what_act_cannot_do_is_a_400_that_names_the_field(
    server: LiveServer, edits: list[dict[str, Any]], param: str
) -> None:
    response = server.raw_completion(server.prompt(40), interventions=edits)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.slow
def test_a_prompt_longer_than_a_step_is_a_400_that_names_the_limit_and_the_causal_form(
    cramped_server: LiveServer,
) -> None:
    prompt = cramped_server.prompt(129)
    refused = cramped_server.raw_completion(prompt, interventions=[ACT])
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "interventions.0.stats"
    assert "128" in error["message"] and "causal" in error["message"]
    assert cramped_server.raw_completion(prompt[:128], interventions=[ACT]).status_code == 200
    causal = [{**ACT, "stats": "causal"}]
    assert cramped_server.raw_completion(prompt, interventions=causal).status_code == 200


@pytest.mark.slow
def test_whole_prompts_are_neither_starved_nor_starve_others(cramped_server: LiveServer) -> None:
    """Prompts as long as a step among decoding requests and long prefills, in a small pool."""
    asked = [
        (cramped_server.prompt(128 if i % 2 else 40 + 50 * i, start=i), [ACT] if i % 2 else [])
        for i in range(10)
    ]
    alone = [cramped_server.fresh(prompt, edits, max_tokens=60) for prompt, edits in asked]
    crowd = together(
        [lambda pair=pair: cramped_server.fresh(pair[0], pair[1], max_tokens=60) for pair in asked]
    )
    for (_, edits), one, other in zip(asked, crowd, alone, strict=True):
        assert one.tokens == other.tokens
        assert_close(one.logprobs, other.logprobs, 2e-5 if edits else 0)
