"""Interventions beside everything else of the OpenAI API, and what the answers say about them."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from conformance import assert_conforms
from live_server import LiveServer

ZEROTUNING = {"method": "zerotuning", "gamma": 3}
LOCORE = {"method": "locore", "beta": 0.5}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}}},
    },
}


def ok(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_report_says_what_ran(server: LiveServer) -> None:
    prompt = server.prompt(40)
    edits = [
        {"method": "zerotuning", "gamma": 3, "layers": [0, -1], "heads": [0, 3, 5]},
        {"method": "emphasis", "spans": [{"start": 3, "end": 5}], "alpha": 1},
        {"method": "head_gain", "gain": 2, "rows": "last_and_generated", "heads": {"1": [0, 2]}},
        {"method": "head_gain", "gain": 2, "rows": "prompt"},
        LOCORE,
    ]
    reports = server.fresh(prompt, edits, max_tokens=9).report
    assert reports is not None
    pairs = server.shape.num_hidden_layers * server.shape.num_attention_heads
    keys = ["method", "status", "source", "layer_count", "head_count", "prompt_rows"]
    keys += ["cached_rows", "generated_rows"]
    layers = server.shape.num_hidden_layers
    expected = [
        ["zerotuning", "applied", "request", 2, 6, 40, 0, 8],
        ["emphasis", "neutral", "request"],
        ["head_gain", "applied", "request", 1, 2, 1, 0, 8],
        ["head_gain", "applied", "request", layers, pairs, 40, 0, 0],
        ["locore", "applied", "request", layers, pairs, 0, 0, 8],
    ]
    found = [[report[key] for key in keys] for report in reports]
    assert [row[: len(e)] for row, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("edit", "cache"),
    [
        (ZEROTUNING, "salted"),
        ({"method": "streaming_llm", "window": 16}, "salted"),
        (LOCORE, "shared"),
        ({"method": "head_gain", "gain": 2, "rows": "generated"}, "shared"),
    ],
    ids=str,
)
def test_the_report_names_the_cache_class(
    server: LiveServer, edit: dict[str, Any], cache: str
) -> None:
    report = server.complete(server.prompt(30), [edit]).report
    assert report and report[0]["cache"] == cache


def test_rows_out_of_the_prefix_cache_are_counted_as_such(server: LiveServer) -> None:
    prompt, edits = server.prompt(300, start=77), [{**ZEROTUNING, "gamma": 3.25}]
    server.complete(prompt, edits)
    again = server.complete(prompt, edits)
    assert again.report
    assert again.report[0]["prompt_rows"] == 300
    assert again.report[0]["cached_rows"] >= 128
    if again.cached_tokens is not None:
        assert again.report[0]["cached_rows"] == again.cached_tokens


@pytest.mark.parametrize("fields", [{}, {"interventions": []}, {"interventions": None}], ids=str)
def test_plain_requests_get_plain_answers(server: LiveServer, fields: dict[str, Any]) -> None:
    for answer in (ok(server.chat("Hi", **fields)), ok(server.raw_completion("Hi", **fields))):
        assert not answer.get("interventions")
        assert not answer["choices"][0].get("interventions")


def test_the_openai_package_sends_and_receives_interventions(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    extra = {"interventions": [ZEROTUNING]}
    messages: Any = [{"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(
        model=server.model, messages=messages, max_tokens=3, extra_body=extra
    )
    assert (chat.model_extra or {})["interventions"][0]["status"] == "applied"
    text = client.completions.create(
        model=server.model, prompt="Hello", max_tokens=3, extra_body=extra
    )
    assert (text.model_extra or {})["interventions"][0]["method"] == "zerotuning"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model=server.model,
            prompt="Hello",
            extra_body={"interventions": [{"method": "zerotuning", "gamma": 11}]},
        )
    assert refused.value.param == "interventions.0.gamma"


def events(server: LiveServer, path: str, **fields: Any) -> list[Any]:
    """The `data:` lines of a stream, `[DONE]` left as it is."""
    prompts: dict[str, Any] = {
        "/v1/completions": {"prompt": "Hello there"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello there"}]},
    }
    body = {"model": server.model, "max_tokens": 5, "temperature": 0, "stream": True}
    body |= prompts[path] | fields
    with server.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


PATHS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])


@PATHS
def test_a_stream_ends_with_a_chunk_that_reports(server: LiveServer, path: str) -> None:
    *chunks, report, done = events(
        server, path, interventions=[ZEROTUNING, LOCORE], ignore_eos=True
    )
    assert done == "[DONE]"
    assert report["choices"] == []
    assert [one["status"] for one in report["interventions"]] == ["applied", "applied"]
    assert report["interventions"][0]["generated_rows"] == 4
    assert report["id"] == chunks[0]["id"]
    assert report["object"] == chunks[0]["object"]
    assert not any("interventions" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


@PATHS
def test_with_usage_the_report_rides_in_the_usage_chunk(server: LiveServer, path: str) -> None:
    chunks = events(
        server, path, interventions=[ZEROTUNING], stream_options={"include_usage": True}
    )
    assert chunks[-1] == "[DONE]"
    without_choices = [chunk for chunk in chunks[:-1] if not chunk["choices"]]
    assert without_choices == [chunks[-2]]
    assert chunks[-2]["usage"]["completion_tokens"] > 0
    assert chunks[-2]["interventions"][0]["status"] == "applied"


@PATHS
@pytest.mark.parametrize("fields", [{}, {"interventions": []}, {"interventions": None}], ids=str)
def test_a_plain_stream_has_no_extra_chunk(
    server: LiveServer, path: str, fields: dict[str, Any]
) -> None:
    *chunks, done = events(server, path, **fields)
    assert done == "[DONE]"
    assert all(chunk["choices"] and "interventions" not in chunk for chunk in chunks)


@PATHS
def test_a_stream_says_what_the_whole_answer_says(server: LiveServer, path: str) -> None:
    fields = {"interventions": [ZEROTUNING], "max_tokens": 12}
    chunks = events(server, path, **fields)
    if path == "/v1/completions":
        streamed = "".join(c["choices"][0]["text"] for c in chunks[:-1] if c["choices"])
        whole = ok(server.raw_completion("Hello there", **fields))["choices"][0]["text"]
    else:
        deltas = [c["choices"][0]["delta"] for c in chunks[:-1] if c["choices"]]
        streamed = "".join(delta.get("content") or "" for delta in deltas)
        whole = ok(server.chat("Hello there", **fields))["choices"][0]["message"]["content"]
    assert streamed == whole


@PATHS
def test_every_choice_of_n_has_a_report(server: LiveServer, path: str) -> None:
    fields: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 5, "interventions": [ZEROTUNING]}
    fields |= {"max_tokens": 6, "ignore_eos": True}
    chat = path == "/v1/chat/completions"
    answer = ok(server.chat("Hi", **fields) if chat else server.raw_completion("Hi", **fields))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice in answer["choices"]:
        assert choice["interventions"][0]["status"] == "applied"
        assert choice["interventions"][0]["generated_rows"] == 5
    assert answer["interventions"] == answer["choices"][0]["interventions"]


def test_every_prompt_of_a_list_has_its_own_spans_and_report(server: LiveServer) -> None:
    prompts = ["the needle is first", "what comes first? then a needle"]
    edits = [{"method": "emphasis", "spans": [{"text": "needle"}]}]
    answer = ok(server.raw_completion(prompts, interventions=edits, return_token_ids=True))
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        ids = choice["prompt_token_ids"]
        report = choice["interventions"][0]
        assert report["prompt_rows"] == len(ids)
        assert spans(report) == [span_of(server, ids, "needle")], prompt
    assert answer["interventions"] == answer["choices"][0]["interventions"]


def test_lists_of_token_ids_work_like_texts(server: LiveServer) -> None:
    prompts = [server.prompt(20), server.prompt(33)]
    answer = ok(server.raw_completion(prompts, interventions=[ZEROTUNING]))
    rows = [choice["interventions"][0]["prompt_rows"] for choice in answer["choices"]]
    assert rows == [20, 33]
    assert len({choice["text"] for choice in answer["choices"]}) == 2


def span_of(server: LiveServer, ids: list[int], text: str, occurrence: int = 1) -> list[int]:
    """Tokens that share a character with an occurrence, found by decoding every prefix."""
    decoded = [server.tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    start = -1
    for _ in range(occurrence):
        start = decoded[-1].index(text, start + 1)
    ends = [len(prefix) for prefix in decoded]
    inside = [i for i in range(len(ids)) if ends[i] < start + len(text) and ends[i + 1] > start]
    return [inside[0], inside[-1] + 1]


def spans(report: dict[str, Any]) -> list[list[int]]:
    return [
        [span["start"], span["end"]] if isinstance(span, dict) else list(span)
        for span in report["spans"]
    ]


@pytest.mark.parametrize(("occurrence", "expected"), [(1, [1]), (2, [2]), ("all", [1, 2])])
def test_spans_are_found_by_their_text_also_inside_a_chat_template(
    server: LiveServer, occurrence: Any, expected: list[int]
) -> None:
    text = "The red door and the blue door stand open, the red door wins."
    edits = [{"method": "emphasis", "spans": [{"text": "red door", "occurrence": occurrence}]}]
    answer = ok(server.chat(text, interventions=edits, return_token_ids=True))
    ids = answer["prompt_token_ids"]
    wanted = [span_of(server, ids, "red door", i) for i in expected]
    assert spans(answer["interventions"][0]) == wanted


def test_a_span_by_text_does_what_the_same_span_by_positions_does(server: LiveServer) -> None:
    text = "The red door and the blue door stand open, the red door wins."
    ids = server.tokenizer(text).input_ids
    start, end = span_of(server, ids, "blue door")
    by_text, by_position = (
        server.fresh(ids, [{"method": "emphasis", "spans": [span]}])
        for span in ({"text": "blue door"}, {"start": start, "end": end})
    )
    assert by_text.logprobs == by_position.logprobs
    edits = [{"method": "emphasis", "spans": [{"start": start, "end": end}]}]
    assert_conforms(server, ids, edits, by_text)


def test_a_stop_string_ends_the_report_where_it_ends_the_answer(server: LiveServer) -> None:
    prompt, edits = server.prompt(50), [ZEROTUNING]
    whole = server.complete(prompt, edits, max_tokens=30)
    stop = whole.text[len(whole.text) // 2 :][:4]
    answer = ok(
        server.raw_completion(
            prompt, interventions=edits, max_tokens=30, stop=[stop], ignore_eos=True
        )
    )
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert whole.text.startswith(choice["text"])
    rows = answer["interventions"][0]["generated_rows"]
    assert rows == answer["usage"]["completion_tokens"] - 1


def test_sampling_settings_and_log_probabilities_work_beside_interventions(
    server: LiveServer,
) -> None:
    fields: dict[str, Any] = {"interventions": [ZEROTUNING], "seed": 3, "temperature": 0.8}
    fields |= {"logprobs": 3, "prompt_logprobs": 2, "echo": False, "max_tokens": 8, "top_p": 0.9}
    one, other = (ok(server.raw_completion("Hello there", **fields)) for _ in range(2))
    assert one["choices"] == other["choices"]
    assert len(one["choices"][0]["logprobs"]["top_logprobs"]) == 8
    assert one["choices"][0]["prompt_logprobs"][0] is None


def test_structured_outputs_hold_beside_interventions(server: LiveServer) -> None:
    fields: dict[str, Any] = {"interventions": [ZEROTUNING], "max_tokens": 40}
    answer = ok(server.chat("Yes or no?", structured_outputs={"choice": ["yes", "no"]}, **fields))
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    number = {"regex": "[0-9]{3}-[0-9]{4}"}
    answer = ok(server.chat("Give me a number.", structured_outputs=number, **fields))
    assert re.fullmatch(number["regex"], answer["choices"][0]["message"]["content"])
    # A small model may never tire of the white space that JSON allows, so only its start is sure.
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    answer = ok(server.chat("Give me an object.", response_format=shape, **fields))
    assert answer["choices"][0]["message"]["content"].lstrip().startswith("{")
    assert answer["interventions"][0]["status"] == "applied"


def test_tools_work_beside_interventions(server: LiveServer) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    for choice in ("none", "auto", named):
        fields = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 60}
        if server.chat("Look.", **fields).status_code != 200 and not server.flags:
            pytest.skip("the running server was started without a tool parser")
        answer = ok(server.chat("Look.", interventions=[ZEROTUNING], **fields))
        assert answer["interventions"][0]["status"] == "applied"
        if choice == named:  # the grammar forces the call, whatever the model would rather say
            assert "look" in json.dumps(answer["choices"][0]["message"])


@pytest.mark.parametrize(
    ("short", "written_out"),
    [
        (
            {"method": "zerotuning", "gamma": 3.0},
            {"gamma": 3, "position": 0, "layers": "all", "heads": "all", "profile": None},
        ),
        ({"method": "act"}, {"beta": 0.4, "tau": None, "alpha_over_n": None, "report": "summary"}),
        ({"method": "snapkv", "keep": 0.5}, {"budget": None, "recent": None, "sinks": 0}),
    ],
    ids=["zerotuning", "act", "snapkv"],
)
def test_null_defaults_and_floats_written_as_integers_are_taken(
    server: LiveServer, short: dict[str, Any], written_out: dict[str, Any]
) -> None:
    prompt = server.prompt(60)
    one, other = (server.fresh(prompt, [edit]) for edit in (short, short | written_out))
    assert one.report is not None and one.report[0]["status"] == "applied"
    assert one.report == other.report
    assert one.logprobs == other.logprobs
