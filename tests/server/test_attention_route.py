"""The route from body to answer, with a stand-in for the engine whose worker is a real book."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from tests.kernels.paged_model import Model, layout_of

from heed_interventions.views import ModelView
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import KeyBias
from heed_kernels.inspection import SLOWER
from heed_kernels.table import EditTable
from heed_server.api import admission, errors
from heed_server.api.activity import Activity
from heed_server.api.cache_room import CacheRoom
from heed_server.api.door import Door
from heed_server.api.reports import ReportCollector
from heed_server.attention import routes
from heed_server.attention.body import AttentionBody
from heed_server.attention.service import Diagnostics
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cpu import InspectingOnCPU
from heed_server.engine.books.twins import Twins
from heed_server.engine.payload import RESERVED_KEY, unpack
from heed_server.metrics import Metrics
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings

LENGTH, LAYERS, QUERY_HEADS, KV_HEADS = 50, 2, 4, 2
VIEW = ModelView(LAYERS, QUERY_HEADS, KV_HEADS, head_dim=32, max_length=128)
PROMPT = list(range(LENGTH))


class StandIn:
    """An engine client whose one worker has `Model`'s queries and keys in every layer."""

    def __init__(self) -> None:
        self.renderer = SimpleNamespace(tokenizer=None, mm_processor_cache=None)
        self.book = EditedRequests(EditTable(2, LAYERS, QUERY_HEADS, KV_HEADS))
        self.book.inspected = InspectedRequests(
            self.book.table, InspectingOnCPU(self.book.table), Twins()
        )
        self.model = Model(layout_of(32, 32), QUERY_HEADS, KV_HEADS, [LENGTH])
        self.params: Any = None
        self.prompt: Any = None
        self.hold_at: str | None = None
        self.held = asyncio.Event()

    async def passes(self, place: str) -> None:
        """Goes no further, once, where it is to hold."""
        if place == self.hold_at:
            self.hold_at = None
            self.held.set()
            await asyncio.Event().wait()

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **rest: Any
    ) -> AsyncIterator[Any]:
        self.prompt, self.params = prompt, params
        self.book.enter("a", unpack(params.extra_args[RESERVED_KEY]), 0)
        step = self.book.plan(["a"], np.array([0, LENGTH]), np.array([0]))
        assert step is not None
        made = self.model
        inputs = LayerInputs(
            made.query[0], made.pages, made.block_table, made.scale, made.rope, made.layout
        )
        for layer in range(LAYERS):
            for observer in step.observers:
                observer.before_edits(layer, inputs)
        try:
            await self.passes("generate")
            yield SimpleNamespace(outputs=[SimpleNamespace(index=0, token_ids=[7])])
        finally:
            self.book.leave("a", finished=True)

    async def reports(self, ids: list[str]) -> list[Any]:
        return [self.book.take(ids)]

    async def inspection(self, report: str) -> list[list[Any]]:
        await self.passes("inspection")
        assert self.book.inspected is not None
        return [[self.book.inspected.take(report)]]


class Completions:
    """Renders token ids as they are."""

    async def render_completion_request(self, request: Any) -> list[Any]:
        return [{"type": "token", "prompt_token_ids": request.prompt}]


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


@pytest.fixture
def client(engine: StandIn) -> TestClient:
    app = FastAPI()
    app.include_router(routes.router)
    errors.install(app)
    door = Door(
        VIEW, Settings(), ProfileStore(None, None, VIEW), None,
        EditTable(1, LAYERS, QUERY_HEADS, KV_HEADS), ReportCollector(engine.reports),
        Metrics("cpu", CollectorRegistry()), Activity(), CacheRoom(),
    )  # fmt: skip
    door.stand_before(engine)
    app.state.heed_diagnostics = Diagnostics(engine, door, engine.inspection)
    app.state.openai_serving_completion = Completions()
    app.state.openai_serving_models = SimpleNamespace(
        is_base_model=lambda name: name == "m", model_name=lambda: "m"
    )
    return TestClient(app)


def ask(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/attention", json={"prompt": PROMPT, **fields})


def test_a_plain_prompt_is_answered(client: TestClient, engine: StandIn) -> None:
    response = ask(client)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert list(answer) == [
        "object", "model", "prompt_tokens", "continuation_tokens", "tokens", "token_ids", "layers",
        "heads", "rows", "spans", "images", "attention", "column_mean", "sink", "mass", "interventions",
    ]  # fmt: skip
    assert answer["model"] == "m" and answer["rows"] == [LENGTH - 1]
    for layer in range(LAYERS):
        weights = engine.model.weights(0, (), layer).after
        made = np.array(answer["attention"][layer])
        np.testing.assert_allclose(made, weights[:, -1:], atol=1e-5)
    assert answer["interventions"] == []
    assert engine.params.skip_reading_prefix_cache and engine.params.max_tokens == 1
    assert "cache_salt" not in engine.prompt


def test_weights_are_those_of_the_edited_attention(client: TestClient, engine: StandIn) -> None:
    edits = [{"method": "zerotuning", "gamma": 3, "layers": [1]}]
    answer = ask(client, interventions=edits, rows="all", include=["attention"]).json()
    (edit,) = unpack(engine.params.extra_args[RESERVED_KEY]).edits
    assert isinstance(edit, KeyBias)
    for layer in range(LAYERS):
        weights = engine.model.weights(0, (edit,), layer).after
        np.testing.assert_allclose(np.array(answer["attention"][layer]), weights, atol=1e-5)
    (report,) = answer["interventions"]
    assert (report["status"], report["prompt_rows"]) == ("applied", LENGTH)
    assert engine.prompt["cache_salt"].startswith("heed1:")


@pytest.mark.parametrize("at", ["generate", "inspection"])
def test_what_a_client_that_leaves_has_had_measured_is_not_kept(
    client: TestClient, engine: StandIn, at: str
) -> None:
    """It leaves while the prompt is computed, or while the answer is fetched."""
    state = client.app.state  # type: ignore[attr-defined]
    diagnostics: Diagnostics = state.heed_diagnostics
    engine.hold_at = at

    async def leave() -> None:
        body = AttentionBody.model_validate({"prompt": PROMPT})
        asked = asyncio.create_task(diagnostics.answer(body, state))
        await asyncio.wait_for(engine.held.wait(), 60)
        assert engine.book.inspected is not None and engine.book.inspected._by_report
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        await asyncio.gather(*diagnostics._discarding)

    asyncio.run(leave())
    assert engine.book.inspected is not None and not engine.book.inspected._by_report
    assert not diagnostics._discarding


def test_a_continuation_is_computed_behind_the_prompt(client: TestClient, engine: StandIn) -> None:
    answer = ask(client, prompt=PROMPT[:30], continuation=PROMPT[30:], include=["waad"]).json()
    assert engine.prompt["prompt_token_ids"] == PROMPT
    assert (answer["prompt_tokens"], answer["continuation_tokens"]) == (30, 20)
    assert len(answer["waad"]["values"]) == 20


def test_the_answer_comes_as_a_numpy_archive_on_request(client: TestClient) -> None:
    lists = ask(client).json()
    header = {"Accept": "application/x-npz"}
    for response in (
        ask(client, encoding="npz"),
        client.post("/v1/attention", json={"prompt": PROMPT}, headers=header),
    ):
        assert response.headers["content-type"] == "application/x-npz"
        with np.load(io.BytesIO(response.content), allow_pickle=False) as made:
            np.testing.assert_allclose(made["attention"], lists["attention"], atol=1e-6)
            assert json.loads(str(made["document"]))["token_ids"] == PROMPT
    body = {"prompt": PROMPT, "encoding": "json"}
    assert client.post("/v1/attention", json=body, headers=header).json() == lists


def test_an_inspection_that_would_hold_up_others_is_refused(
    client: TestClient, engine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = LAYERS * QUERY_HEADS * LENGTH * (LENGTH + 1) // 2
    monkeypatch.setattr(admission, "MOST_WORK", every)
    assert ask(client, include=["dormancy"]).status_code == 200
    edits = [{"method": "streaming_llm", "window": 16, "positions": "original"}]
    refusal = ask(client, include=["dormancy"], interventions=edits)
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == "include"
    assert str(SLOWER * every) in refusal.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rows": [LENGTH]}, "rows.0"),
        ({"rows": 3}, "rows"),
        ({"prompt": [1] * 128}, "prompt"),
        ({"continuation": [1] * 100}, "continuation"),
        ({"continuation": ""}, "continuation"),
        ({"continuation": "a"}, "continuation"),
        (
            {"continuation": [1], "interventions": [{"method": "zerotuning", "gamma": 2}]},
            "continuation",
        ),
        ({"interventions": [{"method": "zerotuning"}]}, "interventions.0.gamma"),
        ({"seed": 1}, "seed"),
    ],
)
def test_refusals_name_the_field(client: TestClient, fields: dict[str, Any], param: str) -> None:
    response = ask(client, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_document_has_body_and_answer(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/attention"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/AttentionBody"}
    assert answer == {"$ref": "#/components/schemas/AttentionAnswer"}
