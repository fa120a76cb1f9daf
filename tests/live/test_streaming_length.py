"""`--max-streaming-length`: streaming requests go on past the model's context, and no others do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conformance import TOLERANCE, largest_difference, reference_of
from live_server import LiveServer, serving, together

LONGEST, CONTEXT, BLOCK = 3000, 512, 32
STREAMING: list[dict[str, Any]] = [{"method": "streaming_llm", "window": 96}]
# A pool of 20 blocks: 640 tokens, a little more than the context of plain requests.
FLAGS = [
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT)),
    *("--block-size", str(BLOCK), "--num-gpu-blocks-override", "21"),
    *("--max-num-batched-tokens", "256", "--max-streaming-length", str(LONGEST)),
]


# The second fits no prompt here: its span is not there.
DEFAULTS: list[dict[str, Any]] = [
    {"method": "zerotuning", "gamma": 2},
    {"method": "emphasis", "spans": [{"text": "words that are nowhere"}]},
]


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("long")
    defaults = directory / "defaults.json"
    defaults.write_text(json.dumps(DEFAULTS))
    flags = [*FLAGS, "--default-interventions", str(defaults)]
    with serving(directory / "server.log", flags) as server:
        yield server


def test_a_prompt_beyond_context_and_pool_is_streamed_beside_plain_requests(
    long_server: LiveServer,
) -> None:
    prompt, plain = long_server.prompt(2700), long_server.prompt(200, start=3)
    alone = long_server.fresh(plain, [], max_tokens=60)
    found, beside = together(
        [
            lambda: long_server.fresh(prompt, STREAMING, max_tokens=100),
            lambda: long_server.fresh(plain, [], max_tokens=60),
        ]
    )
    assert len(found.tokens) == 100
    assert found.report is not None
    # The last row is 2798; its window begins at 2703, in block 84.
    assert found.report[0]["freed_blocks"] == 83
    assert found.report[0]["kept_tokens"] == 2799 - 83 * BLOCK
    assert (beside.tokens, beside.logprobs) == (alone.tokens, alone.logprobs)


def test_a_stream_ends_at_its_own_limit(long_server: LiveServer) -> None:
    response = long_server.raw_completion(
        long_server.prompt(2950), max_tokens=900, ignore_eos=True, interventions=STREAMING
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["usage"]["total_tokens"] == LONGEST
    assert body["choices"][0]["finish_reason"] == "length"


def test_events_of_a_stream_come_as_of_any_other_request(long_server: LiveServer) -> None:
    response = long_server.raw_completion(
        long_server.prompt(900), max_tokens=5, ignore_eos=True, stream=True, interventions=STREAMING
    )
    assert response.status_code == 200, response.text
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["interventions"][0]["freed_blocks"] > 0
    assert not any("error" in event for event in events)


OTHERS: dict[str, list[dict[str, Any]] | None] = {
    "defaults": None,
    "plain": [],
    "zerotuning": [{"method": "zerotuning", "gamma": 2}],
    "original positions": [{"method": "streaming_llm", "window": 96, "positions": "original"}],
    "a window that hides nothing": [{"method": "streaming_llm", "sinks": 4, "window": CONTEXT}],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("stream", [False, True])
def test_all_other_requests_keep_the_models_context(
    long_server: LiveServer, kind: str, stream: bool
) -> None:
    fields: dict[str, Any] = {"ignore_eos": True}
    if OTHERS[kind] is not None:
        fields["interventions"] = OTHERS[kind]
    response = long_server.raw_completion(long_server.prompt(CONTEXT + 1), stream=stream, **fields)
    assert response.status_code == 400, response.text
    assert str(CONTEXT) in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "input_tokens"
    too_much = long_server.raw_completion(long_server.prompt(9), max_tokens=CONTEXT + 1, **fields)
    assert too_much.status_code == 400, too_much.text
    assert too_much.json()["error"]["param"] == "max_tokens"
    # As vLLM does, an answer is cut where the context ends.
    cut = long_server.raw_completion(long_server.prompt(CONTEXT - 20), max_tokens=60, **fields)
    assert cut.json()["usage"]["total_tokens"] == CONTEXT


def test_what_is_beyond_the_longest_stream_is_refused(long_server: LiveServer) -> None:
    prompt = long_server.prompt(LONGEST + 1)
    response = long_server.raw_completion(prompt, interventions=STREAMING)
    assert response.status_code == 400, response.text
    assert str(LONGEST) in response.json()["error"]["message"]


def test_the_model_card_says_what_holds_for_every_request(long_server: LiveServer) -> None:
    assert long_server.card["max_model_len"] == CONTEXT
    response = long_server.chat("a word " * 700)
    assert response.status_code == 400


def test_validation_knows_the_longer_limit_too(long_server: LiveServer) -> None:
    body = {"model": long_server.model, "prompt": long_server.prompt(1000), "max_tokens": 4}
    streamed = long_server.post("/v1/interventions/validate", {**body, "interventions": STREAMING})
    assert streamed.status_code == 200, streamed.text
    assert streamed.json()["prompts"][0]["prompt_tokens"] == 1000
    assert long_server.post("/v1/interventions/validate", body).status_code == 400


def test_a_request_that_says_nothing_has_the_servers_defaults(long_server: LiveServer) -> None:
    prompt = long_server.prompt(60)
    silent, asked, plain = (long_server.fresh(prompt, edits) for edits in (None, DEFAULTS[:1], []))
    assert (silent.tokens, silent.logprobs) == (asked.tokens, asked.logprobs)
    assert silent.logprobs != plain.logprobs and plain.report == []
    assert silent.report is not None
    zerotuning, emphasis = silent.report
    assert (zerotuning["status"], zerotuning["source"]) == ("applied", "default")
    assert (zerotuning["prompt_rows"], zerotuning["generated_rows"]) == (60, 11)
    assert (emphasis["status"], emphasis["source"]) == ("skipped", "default")
    assert "words that are nowhere" in emphasis["reason"]
    null = long_server.raw_completion(prompt, interventions=None)
    assert [report["source"] for report in null.json()["interventions"]] == ["default"] * 2


def test_defaults_put_no_chunk_into_a_stream_and_nothing_into_a_beam_search(
    long_server: LiveServer,
) -> None:
    streamed = long_server.raw_completion("Hello", stream=True)
    assert streamed.status_code == 200 and "interventions" not in streamed.text
    beams = long_server.raw_completion("Hello", use_beam_search=True, n=2)
    assert beams.status_code == 200, beams.text
    assert [report["status"] for report in beams.json()["interventions"]] == ["skipped"] * 2


@pytest.mark.slow
def test_rows_past_every_trained_position_equal_the_reference(long_server: LiveServer) -> None:
    """The model has 2,048 positions; the reference rolls them over the visible keys, as the paper does."""
    prompt = long_server.prompt(2300, start=11)
    found = long_server.fresh(prompt, STREAMING, max_tokens=24)
    reference = reference_of(long_server, prompt, STREAMING, found)
    worst, place = largest_difference(found.logprobs, reference.token_logprobs)
    assert worst <= TOLERANCE, f"log-probability {place} is off by {worst:.3g}"
