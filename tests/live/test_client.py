"""The Python client against the server that all live tests share."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import openai
import pytest
from live_server import LiveServer
from pages import blocks, page, run_script

from heed_client import AsyncHeed, Heed, HeedError, reports, with_interventions
from heed_client.methods import HeadGain, LocoRE, ZeroTuning

PAGE = page("clients/python/README.md")
EDIT = ZeroTuning(gamma=3)
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def heed(server: LiveServer) -> Heed:
    return Heed(f"{server.url}/v1")


@pytest.fixture
def edited(server: LiveServer) -> openai.OpenAI:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return with_interventions(client, [EDIT, LocoRE()])


def test_the_examples_of_the_page_run(server: LiveServer) -> None:
    printed = [run_script(each, server).strip() for each in blocks(PAGE, "python")]
    assert printed[0] == "- dog applied [[16, 22]]"
    assert re.fullmatch(r"6 \(1, 6, (\d+), \1\) \[.*\]", printed[1])


def test_all_generations_of_a_client_carry_the_interventions(
    server: LiveServer, edited: openai.OpenAI
) -> None:
    name = server.model
    answers = [
        edited.chat.completions.create(model=name, messages=HELLO, max_tokens=3),
        edited.completions.create(model=name, prompt="Hello", max_tokens=3, n=2),
        edited.responses.create(model=name, input="Hello", max_output_tokens=3),
    ]
    for answer in answers:
        assert [report.status for report in reports(answer)] == ["applied", "applied"]
    assert len(reports(answers[1], choice=1)) == 2


def test_the_last_chunk_of_a_stream_has_the_reports(
    server: LiveServer, edited: openai.OpenAI
) -> None:
    stream = edited.chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=3, stream=True
    )
    found = [reports(chunk) for chunk in stream]
    assert not any(found[:-1]) and len(found[-1]) == 2


def test_an_asynchronous_client_does_the_same(server: LiveServer) -> None:
    async def ask() -> Any:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        edited = with_interventions(client, [EDIT])
        answer = await edited.chat.completions.create(
            model=server.model, messages=HELLO, max_tokens=3
        )
        async with AsyncHeed(f"{server.url}/v1") as heed:
            checked = await heed.validate([EDIT], prompt="Hello")
            methods = await heed.methods()
            seen = await heed.attention(prompt="Hello there", include=["mass"])
        return reports(answer), checked, methods, seen

    told, checked, methods, seen = asyncio.run(ask())
    assert told[0].status == checked[0].status == "applied"
    assert "zerotuning" in {each["method"] for each in methods}
    assert seen.mass is not None and seen.attention is None


def test_the_servers_own_routes_are_read(heed: Heed, server: LiveServer) -> None:
    assert heed.method("zerotuning")["parameters"]["properties"]["gamma"]["maximum"] == 10
    listed = server.client.get("/v1/intervention-profiles").json()["data"]
    assert heed.profiles() == listed
    (report,) = heed.validate([HeadGain(gain=1)], messages=HELLO)
    assert report.status == "neutral"
    seen = heed.attention([EDIT], prompt="Hello there", include=["mass"])
    assert seen.interventions[0].status == "applied"


def test_a_refusal_is_an_error_that_names_the_field(heed: Heed) -> None:
    with pytest.raises(HeedError) as refusal:
        heed.validate([{"method": "zerotuning", "gamma": 11}], prompt="Hello")
    assert (refusal.value.status, refusal.value.param) == (400, "interventions.0.gamma")
    with pytest.raises(HeedError, match="no_such") as refusal:
        heed.method("no_such")
    assert refusal.value.status == 404
