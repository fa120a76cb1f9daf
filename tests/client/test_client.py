"""The rest of the client, without a server."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from heed_client import Attention, reports, with_interventions
from heed_client.attention import unpacked
from heed_client.methods import ZeroTuning
from heed_server.attention.answer import archive, as_base64
from heed_server.attention.body import AttentionAnswer

REPORT = {"method": "zerotuning", "status": "applied", "source": "request", "spans": [[1, 2]]}
OTHER = {**REPORT, "status": "neutral"}


class Calls:
    """A resource of an openai client that answers with what it was called with."""

    def create(self, **given: Any) -> dict[str, Any]:
        return given

    def list(self, **given: Any) -> dict[str, Any]:
        return given


def stub() -> Any:
    calls = Calls()
    chat = SimpleNamespace(completions=calls)
    return SimpleNamespace(chat=chat, completions=calls, responses=calls, models=calls, api_key="k")


@pytest.mark.parametrize("resource", ["chat.completions", "completions", "responses"])
def test_every_generation_carries_the_interventions(resource: str) -> None:
    found = with_interventions(stub(), [ZeroTuning(gamma=2)])
    for name in resource.split("."):
        found = getattr(found, name)
    sent = found.create(model="m", extra_body={"top_k": 3})
    edits = [{"method": "zerotuning", "gamma": 2}]
    assert sent == {"model": "m", "extra_body": {"interventions": edits, "top_k": 3}}
    assert found.create(extra_body={"interventions": []})["extra_body"] == {"interventions": []}


def test_everything_else_is_the_clients_own() -> None:
    plain = stub()
    edited = with_interventions(plain, [ZeroTuning(gamma=2)])
    assert edited.models.list(a=1) == {"a": 1} and edited.api_key == "k"
    assert plain.completions.create(a=1) == {"a": 1}


def test_copies_of_a_client_carry_them_too() -> None:
    """`with_options` would give an openai client back, whose requests are plain."""
    sent: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["interventions"])
        return httpx.Response(200, json={"choices": []})

    async def answer_async(request: httpx.Request) -> httpx.Response:
        return answer(request)

    where: dict[str, Any] = {"base_url": "http://localhost/v1", "api_key": "none"}
    call: dict[str, Any] = {"model": "m", "prompt": "a"}
    plain = openai.OpenAI(**where, http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    with with_interventions(plain, [ZeroTuning(gamma=2)]) as edited:
        edited.with_options(timeout=1).completions.create(**call)
        edited.copy().with_raw_response.completions.create(**call)
    assert plain.is_closed()

    async def ask() -> None:
        transport = httpx.MockTransport(answer_async)
        plain = openai.AsyncOpenAI(**where, http_client=httpx.AsyncClient(transport=transport))
        async with with_interventions(plain, [ZeroTuning(gamma=2)]) as edited:
            await edited.with_options(timeout=1).completions.create(**call)
        assert plain.is_closed()

    asyncio.run(ask())
    assert sent == [[{"method": "zerotuning", "gamma": 2}]] * 3


@pytest.mark.parametrize(
    "answer",
    [
        {"interventions": [REPORT], "choices": []},
        SimpleNamespace(interventions=[REPORT]),
        {"type": "response.completed", "response": {"interventions": [REPORT]}},
    ],
    ids=["a body", "an object", "an event"],
)
def test_reports_are_read_wherever_they_stand(answer: Any) -> None:
    (report,) = reports(answer)
    assert (report.status, report.measured()) == ("applied", {"spans": [[1, 2]]})


def test_each_choice_has_its_own_reports() -> None:
    choices = [{"index": 0, "interventions": [REPORT]}, {"index": 1, "interventions": [OTHER]}]
    answer = {"choices": choices, "interventions": [REPORT]}
    assert reports(answer)[0].status == "applied"
    assert reports(answer, choice=1)[0].status == "neutral"
    assert reports({"choices": []}) == []


def attention(**fields: Any) -> Attention:
    weights = [[[[1.0, 0.0], [0.25, 0.75]]] * 3] * 2  # [2 layers][3 heads][2 rows][2 keys]
    return Attention.model_validate(
        {
            "model": "m", "prompt_tokens": 2, "continuation_tokens": 0, "tokens": ["a", "b"],
            "token_ids": [1, 2], "layers": [0, 1], "heads": [0, 1, 2], "rows": [0, 1], "spans": [],
            "attention": weights, "interventions": [], **fields,
        }
    )  # fmt: skip


def test_bertviz_gets_a_tensor_of_each_layer() -> None:
    view = attention().to_bertviz()
    assert [tuple(layer.shape) for layer in view["attention"]] == [(1, 3, 2, 2)] * 2
    assert view["attention"][1][0, 2].tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert view["tokens"] == ["a", "b"]


def test_diagnostics_have_the_servers_fields() -> None:
    assert set(Attention.model_fields) == set(AttentionAnswer.model_fields) - {"object"}


def test_values_are_read_in_every_encoding() -> None:
    weights = np.random.default_rng(0).random((2, 3, 2, 2), np.float32)
    mass = {"position_0": weights[..., 0]}
    fields = {"attention": weights, "mass": mass, "waad": {"values": np.array([np.nan], "f4")}}
    lists = attention(
        attention=weights.tolist(),
        mass={"position_0": mass["position_0"].tolist()},
        waad={"values": [None]},
    )
    base64 = attention(
        attention=as_base64(weights),
        mass={"position_0": as_base64(mass["position_0"])},
        waad={"values": as_base64(fields["waad"]["values"])},
    )
    packed = Attention.model_validate(unpacked(archive({**lists.model_dump(), **fields})))
    for seen in (lists, base64, packed):
        np.testing.assert_array_equal(seen.array("attention"), weights)
        np.testing.assert_array_equal(seen.array("mass.position_0"), mass["position_0"])
        assert np.isnan(seen.array("waad.values")).all()
        assert seen.to_bertviz()["attention"][1].tolist() == [weights[1].tolist()]
        for nothing in ("vhd", "mass.image", "tokens.0", "mass"):
            with pytest.raises(KeyError, match=nothing):
                seen.array(nothing)


@pytest.mark.parametrize(
    "fields", [{"rows": [1]}, {"attention": None}, {"tokens": None}], ids=lambda f: next(iter(f))
)
def test_bertviz_is_refused_what_it_cannot_show(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="BertViz"):
        attention(**fields).to_bertviz()
