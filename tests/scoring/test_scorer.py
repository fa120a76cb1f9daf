"""What is sent for items with images, and what is made of the answers."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from tests.scoring.stand_in import StandIn, two_way

from heed_server.scoring.calls import PLAIN, Kind, Setting
from heed_server.scoring.data import Item
from heed_server.scoring.images import question_about
from heed_server.scoring.prompts import prepare
from heed_server.scoring.scorer import Scorer
from heed_server.scoring.scores import Scores

EDITED: Setting = [{"method": "pai"}, {"method": "zerotuning", "gamma": 2.0}]


def rule(_: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
    return two_way(0.4 if edits else 0.8)


def scored(client: StandIn, kind: Kind, setting: Setting, **fields: Any) -> Scores:
    blank: dict[str, Any] = {"choices": ("p", "n"), "answer": "p"} | fields
    items = [
        Item("t", "line", None, (question_about(f"data:{number}", "Is it?", Path()),), **blank)
        for number in range(3)
    ]

    async def run() -> Scores:
        scorer = Scorer(client, batch=2, most_tokens=5, answered=lambda _: None)
        found = await scorer.scores(setting, await prepare(client, items), kind, lambda *_: None)
        return Scores.of(found)

    return asyncio.run(run())


def test_an_image_goes_as_a_chat_of_its_own() -> None:
    client = StandIn(rule)
    found = scored(client, "choices", EDITED)
    assert found.right.tolist() == [0, 0, 0] and found.said == ("n", "n", "n")
    assert found.likelihood == pytest.approx(math.log(0.4))
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in client.requests]
    assert sorted(urls) == ["data:0", "data:1", "data:2"]
    for body in client.requests:
        assert body["interventions"] == list(EDITED)
        assert body["logprobs"] is True and body["top_logprobs"] == 20 and "prompt" not in body


def test_choices_of_several_tokens_end_the_chat() -> None:
    client = StandIn(rule)
    found = scored(client, "choices", PLAIN, choices=("pn", "pp"), answer="pp")
    assert found.likelihood == pytest.approx(math.log(0.8))
    assert len(client.requests) == 6
    for body in client.requests:
        assert body["continue_final_message"] and not body["add_generation_prompt"]
        assert body["messages"][-1]["role"] == "assistant" and body["prompt_logprobs"] == 0


def test_a_text_about_an_image_is_what_the_chat_says() -> None:
    client = StandIn(rule)
    found = scored(client, "text", PLAIN, choices=())
    assert found.right.tolist() == [1, 1, 1] and found.said == ("p", "p", "p")
    assert {body["max_tokens"] for body in client.requests} == {5}
    unlabelled = scored(client, "text", PLAIN, choices=(), answer=None)
    assert unlabelled.said == ("p", "p", "p") and all(map(math.isnan, unlabelled.right))
