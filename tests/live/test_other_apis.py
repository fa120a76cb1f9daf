"""Interventions through OpenAI's responses and Anthropic's messages: the same checks, the same reports."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from live_server import Body, LiveServer
from test_refusals import assert_refused

ZEROTUNING: Body = {"method": "zerotuning", "gamma": 3}
QUESTION = "Write the word dog. Important: write it with a dash."
DOORS: dict[str, Body] = {
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 6, "temperature": 0},
    "/v1/messages": {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 6,
        "temperature": 0,
    },
}
EVERY = pytest.mark.parametrize("path", DOORS)


def body(server: LiveServer, path: str, **fields: Any) -> Body:
    return {"model": server.model, **DOORS[path], **fields}


def ok(response: httpx.Response) -> Body:
    assert response.status_code == 200, response.text[:500]
    answer: Body = response.json()
    return answer


def text_of(answer: Body) -> str:
    if "output" in answer:
        return "".join(part["text"] for item in answer["output"] for part in item["content"])
    return "".join(block["text"] for block in answer["content"])


def events(server: LiveServer, path: str, **fields: Any) -> list[Body]:
    sent = body(server, path, stream=True, **fields)
    with server.client.stream("POST", path, json=sent) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


@EVERY
def test_the_answer_is_that_of_a_chat_and_says_what_ran(server: LiveServer, path: str) -> None:
    edits = [{"method": "emphasis", "spans": [{"text": "with a dash"}], "alpha": 0.1}]
    chat = ok(server.chat(QUESTION, max_tokens=6, interventions=edits))
    answer = ok(server.post(path, body(server, path, interventions=edits)))
    assert text_of(answer) == chat["choices"][0]["message"]["content"]
    (report,), (of_chat,) = answer["interventions"], chat["interventions"]
    assert report["status"] == "applied" and report["spans"] == of_chat["spans"]
    assert report["generated_rows"] == of_chat["generated_rows"]


@EVERY
def test_plain_requests_get_plain_answers(server: LiveServer, path: str) -> None:
    chat = ok(server.chat(QUESTION, max_tokens=6))
    answer = ok(server.post(path, body(server, path)))
    assert "interventions" not in answer
    assert text_of(answer) == chat["choices"][0]["message"]["content"]


@EVERY
def test_a_stream_tells_what_ran_in_its_last_word(server: LiveServer, path: str) -> None:
    found = events(server, path, interventions=[ZEROTUNING])
    holders = [each for each in found if "interventions" in json.dumps(each)]
    (holder,) = holders
    reports = holder.get("interventions") or holder["response"]["interventions"]
    assert reports[0]["status"] == "applied" and reports[0]["generated_rows"] > 0
    assert holder["type"] in ("message_delta", "response.completed")
    plain = [each["type"] for each in events(server, path)]
    assert set(plain) == {each["type"] for each in found}


@EVERY
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("edits", "param"),
    [
        ([{"method": "zerotuning", "gamma": 11}], "interventions.0.gamma"),
        ([{**ZEROTUNING, "layers": [99]}], "interventions.0.layers.0"),
        (
            [{"method": "emphasis", "spans": [{"text": "nowhere"}]}],
            "interventions.0.spans.0.text",
        ),
    ],
    ids=["as written", "for the model", "for the prompt"],
)
def test_refusals_come_before_the_first_token_and_name_the_field(
    server: LiveServer, path: str, edits: list[Body], param: str, stream: bool
) -> None:
    response = server.post(path, body(server, path, interventions=edits, stream=stream))
    assert_refused(response, param)
    assert response.json().get("type") == ("error" if path == "/v1/messages" else None)


@EVERY
def test_the_reserved_key_is_refused(server: LiveServer, path: str) -> None:
    response = server.post(path, body(server, path, vllm_xargs={"heed": "x"}))
    assert_refused(response, "vllm_xargs.heed")


def test_a_response_in_the_background_cannot_carry_interventions(server: LiveServer) -> None:
    path = "/v1/responses"
    sent = body(server, path, interventions=[ZEROTUNING], background=True)
    assert "background" in assert_refused(server.post(path, sent), "background")


def test_the_openai_package_reads_the_report_of_a_response(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    extra = {"interventions": [ZEROTUNING]}
    answer = client.responses.create(
        model=server.model, input=QUESTION, max_output_tokens=6, extra_body=extra
    )
    assert (answer.model_extra or {})["interventions"][0]["status"] == "applied"
    *_, done = client.responses.create(
        model=server.model, input=QUESTION, max_output_tokens=6, extra_body=extra, stream=True
    )
    assert done.type == "response.completed"
    assert (done.response.model_extra or {})["interventions"][0]["status"] == "applied"
