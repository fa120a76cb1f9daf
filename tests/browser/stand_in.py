"""A server without a model: the playground's own routes, the real catalogue and its checks, canned answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from heed_interventions.errors import InterventionError
from heed_interventions.parse import parse
from heed_interventions.registry import catalogue
from heed_interventions.views import ModelView
from heed_server.api.playground_routes import playground_router

Body = dict[str, Any]
BASELINE = ["The", " answer", " is", " negative", "."]
EDITED = ["The", " answer", " is", " <b>positive</b>", ",", " clearly", "."]
LAYERS, HEADS, IMAGE_KEYS = 4, 3, 16
WORDS = ["<s>", "ĠThe", "Ġplot", "Ġwas", "Ġclever", "."]


@dataclass
class StandIn:
    """What it answers, and what it was asked.

    key: asked for under /v1 where it is not empty; images: whether the model takes some; gap: seconds
    between the tokens of an answer; refusal: answered instead of a generation; breaks: an edited answer
    ends in an error.
    """

    url: str = ""
    key: str = ""
    images: bool = False
    gap: float = 0.0
    refusal: Body | None = None
    breaks: bool = False
    asked: list[tuple[str, Body]] = field(default_factory=list)

    def reset(self) -> None:
        self.key, self.images, self.gap, self.refusal = "", False, 0.0, None
        self.breaks = False
        self.asked.clear()

    def bodies(self, path: str) -> list[Body]:
        """What was sent to `path`, in order."""
        return [body for asked, body in self.asked if asked == path]

    def sides(self, path: str) -> tuple[Body, Body]:
        """What was sent to `path` without interventions and with some: they go out together."""
        plain, edited = sorted(self.bodies(path), key=lambda body: len(body["interventions"]))
        return plain, edited

    @property
    def model(self) -> ModelView:
        return ModelView(LAYERS, HEADS, HEADS, 32, 2048, vision=self.images)


@contextmanager
def standing_in() -> Iterator[StandIn]:
    """One that listens on a free port until the block ends."""
    stand_in = StandIn()
    config = uvicorn.Config(application(stand_in), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    stand_in.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield stand_in
    server.should_exit = True
    thread.join(10)


def application(stand_in: StandIn) -> FastAPI:
    app = FastAPI()
    app.include_router(playground_router())

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        given = request.headers.get("authorization")
        if (
            stand_in.key
            and request.url.path.startswith("/v1")
            and given != f"Bearer {stand_in.key}"
        ):
            return JSONResponse({"error": "Unauthorized"}, 401)
        response: Response = await call_next(request)
        return response

    @app.get("/v1/interventions")
    async def interventions() -> Any:
        view = stand_in.model
        shape = {
            "layers": view.layers, "query_heads": view.query_heads, "kv_heads": view.kv_heads,
            "images": view.vision,
        }  # fmt: skip
        return {"object": "list", "model": shape, "data": catalogue(view)}

    @app.get("/v1/models")
    async def models() -> Any:
        profile = {"id": "tiny@sentiment", "owned_by": "heed", "parent": "tiny"}
        return {"object": "list", "data": [{"id": "tiny", "owned_by": "vllm"}, profile]}

    @app.get("/v1/intervention-profiles")
    async def profiles() -> Any:
        return {"object": "list", "data": [{"name": "sentiment", "method": "act"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await generation(request, chat_chunk)

    @app.post("/v1/completions")
    async def completion(request: Request) -> Response:
        return await generation(request, completion_chunk)

    async def generation(request: Request, chunk: Any) -> Response:
        body = await request.json()
        stand_in.asked.append((request.url.path, body))
        if refused := stand_in.refusal or refusal_of(body):
            return JSONResponse(refused, refused["error"]["code"])
        return StreamingResponse(events(stand_in, body, chunk), media_type="text/event-stream")

    @app.post("/v1/attention")
    async def attention(request: Request) -> Response:
        body = await request.json()
        stand_in.asked.append((request.url.path, body))
        refused = refusal_of(body)
        return JSONResponse(refused, 400) if refused else JSONResponse(attention_of(stand_in, body))

    return app


def refusal_of(body: Body) -> Body | None:
    """The error body that Heed's own checks lead to."""
    try:
        parse(body["interventions"])
    except InterventionError as error:
        return refusal(str(error), error.param)
    return None


def refusal(message: str, param: str | None, code: int = 400) -> Body:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}


def events(stand_in: StandIn, body: Body, chunk: Any) -> Iterator[str]:
    edits = body["interventions"]
    tokens = EDITED if edits else BASELINE
    for at, token in enumerate(tokens):
        time.sleep(stand_in.gap)
        reason = "stop" if at == len(tokens) - 1 else None
        yield f"data: {json.dumps({'choices': [chunk(token, -0.25 * (at + 1)) | {'finish_reason': reason}]})}\n\n"
    if edits and stand_in.breaks:
        yield f"data: {json.dumps(refusal('the engine is gone', None, 500))}\n\n"
    elif edits:
        reports = [
            {"method": edit["method"], "status": "applied", "layer_count": 4} for edit in edits
        ]
        yield f"data: {json.dumps({'choices': [], 'interventions': reports})}\n\n"
    yield "data: [DONE]\n\n"


def chat_chunk(token: str, logprob: float) -> Body:
    others = [{"token": token, "logprob": logprob}, {"token": " other", "logprob": -3.0}]
    content = [{"token": token, "logprob": logprob, "top_logprobs": others}]
    return {"delta": {"content": token}, "logprobs": {"content": content}}


def completion_chunk(token: str, logprob: float) -> Body:
    top = [{" other": -3.0, token: logprob}]
    return {
        "text": token,
        "logprobs": {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": top},
    }


def attention_of(stand_in: StandIn, body: Body) -> Body:
    """Layer l and head h give (l + h + 1) / 10 to the first token, a tenth as much to a span and half to
    the images; edited 0.05 less."""
    pictures = "image_url" in json.dumps(body.get("messages", ""))
    tokens = [*WORDS[:2], *["<image>"] * (IMAGE_KEYS if pictures else 0), *WORDS[2:]]
    less = 0.05 if body["interventions"] else 0.0
    layers = body.get("layers", list(range(LAYERS)))
    heads = body.get("heads", list(range(HEADS)))

    def grid(number: Any) -> list[list[Any]]:
        return [[number((layer + head + 1) / 10 - less) for head in heads] for layer in layers]

    answer: Body = {
        "object": "attention", "tokens": tokens, "token_ids": list(range(len(tokens))),
        "layers": layers, "heads": heads, "rows": [len(tokens) - 1],
        "images": [[[2, 2 + IMAGE_KEYS]]] if pictures else [], "interventions": [],
    }  # fmt: skip
    if "mass" in body["include"]:
        spans = len(body.get("spans", ()))
        answer["mass"] = {"position_0": grid(lambda mass: [mass])}
        if spans:
            answer["mass"]["spans"] = grid(lambda mass: [[mass / 10] * spans])
        if pictures:
            answer["mass"]["image"] = grid(lambda mass: [mass / 2])
    if "attention" in body["include"]:
        weights = [key / 100 for key in range(len(tokens))]
        answer["attention"] = grid(lambda mass: [[mass + weight for weight in weights]])
    if "column_mean" in body["include"]:
        answer["column_mean"] = grid(lambda mass: [mass] * len(tokens))
    return answer
