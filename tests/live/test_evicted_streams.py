"""Answers of requests that evict, as they come: usage, stop conditions, and the report at the end."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from eviction_cases import EVICTION, P, edit
from live_server import LiveServer
from test_api import events

TOKENS = 24
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def asked(server: LiveServer, method: str, **fields: Any) -> dict[str, Any]:
    """Fields of a request of P tokens, with a salt of its own: nothing comes out of the prefix cache."""
    return {
        "prompt": server.prompt(P, start=9),
        "interventions": [edit(method, report="full")],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "cache_salt": secrets.token_hex(8),
        **fields,
    }


def whole(server: LiveServer, method: str, **fields: Any) -> dict[str, Any]:
    answer = server.raw_completion(**asked(server, method, **fields))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("method", EVICTION)
def test_a_stream_has_the_answer_usage_and_report_of_the_whole(
    server: LiveServer, method: str
) -> None:
    expected = whole(server, method)
    usage = {"stream_options": {"include_usage": True}}
    *chunks, last, done = events(server, COMPLETIONS, **asked(server, method), **usage)
    assert done == "[DONE]"
    assert (
        "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected["choices"][0]["text"]
    )
    assert not any("interventions" in chunk for chunk in chunks)
    counts = {"prompt_tokens": P, "completion_tokens": TOKENS, "total_tokens": P + TOKENS}
    assert last["choices"] == []
    assert {name: last["usage"][name] for name in counts} == counts
    assert {name: expected["usage"][name] for name in counts} == counts
    (report,) = last["interventions"]
    assert [report] == expected["interventions"]
    assert report["generated_rows"] == TOKENS - 1
    tokens = report["kept_tokens"] + report["evicted_tokens"]
    assert tokens == pytest.approx(P + TOKENS - 1)


@pytest.mark.parametrize("method", ["snapkv", "h2o", "tova"])
def test_a_stop_string_ends_a_stream_where_it_ends_the_whole_answer(
    server: LiveServer, method: str
) -> None:
    """The engine may have computed a row or two past the string: reports count the rows of the answer."""
    text = whole(server, method)["choices"][0]["text"]
    stop = text[len(text) // 2 :][:4]
    assert stop
    expected = whole(server, method, stop=stop)
    (choice,) = expected["choices"]
    assert choice["finish_reason"] == "stop" and choice["text"] == text[: text.index(stop)]
    fields = asked(server, method, stop=stop, stream_options={"include_usage": True})
    *chunks, last, _ = events(server, COMPLETIONS, **fields)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"] < TOKENS
    (report,) = last["interventions"]
    assert report["generated_rows"] == last["usage"]["completion_tokens"] - 1
    assert report["kept"] == expected["interventions"][0]["kept"]


def test_a_stop_token_ends_an_answer_after_an_eviction(server: LiveServer) -> None:
    first = whole(server, "snapkv", return_token_ids=True)["choices"][0]["token_ids"]
    place = next(i for i, token in enumerate(first) if i > 2 and token not in first[:i])
    found = whole(server, "snapkv", stop_token_ids=[first[place]], return_token_ids=True)
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["choices"][0]["token_ids"] == first[: place + 1]
    assert found["usage"]["completion_tokens"] == place + 1


def test_without_usage_a_stream_ends_with_a_chunk_for_the_report(server: LiveServer) -> None:
    *chunks, last, done = events(server, COMPLETIONS, **asked(server, "knorm"))
    assert done == "[DONE]" and last["choices"] == [] and "usage" not in last
    assert last["interventions"][0]["evicted_tokens"] == P - 90
    assert all(chunk["choices"] for chunk in chunks)


def test_a_stream_of_a_chat_reports_what_it_evicted(server: LiveServer) -> None:
    content = server.tokenizer.decode(server.prompt(P, start=9)[1:])
    fields = {
        "messages": [{"role": "user", "content": content}],
        "interventions": [edit("snapkv")],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, last, _ = events(server, CHAT, **fields)
    (report,) = last["interventions"]
    length = last["usage"]["prompt_tokens"]
    assert report["budget"] == length * 3 // 10
    assert report["evicted_tokens"] == length - report["budget"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_evicted_tokens_count_toward_the_context_all_the_same(server: LiveServer) -> None:
    longest = int(server.card["max_model_len"])
    prompt = server.prompt(longest - 6)
    found = []
    for fields in ({}, {"interventions": [edit("knorm", keep=0.05)]}):
        last = server.raw_completion(prompt, max_tokens=6, ignore_eos=True, **fields)
        assert last.json()["usage"]["total_tokens"] == longest
        more = server.raw_completion(prompt, max_tokens=7, ignore_eos=True, **fields)
        found.append((more.status_code, more.json().get("usage")))
    assert found[0] == found[1]
