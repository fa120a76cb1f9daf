"""From a body to an answer: the prompt runs once through the engine, and the workers measure it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.logger import init_logger
from vllm.sampling_params import RequestOutputKind, SamplingParams

from heed_interventions.text.token_text import align
from heed_interventions.views import PromptView
from heed_server.api.answers import choice_reports
from heed_server.api.context_length import context_length
from heed_server.api.door import Door
from heed_server.api.errors import RefusedError
from heed_server.api.exchange import CURRENT, Exchange
from heed_server.api.model_names import IsServed
from heed_server.api.rendering import rendered_prompts
from heed_server.api.requests import HeedChatRequest, HeedCompletionRequest, exchange_of
from heed_server.attention.answer import measured
from heed_server.attention.asked import asked_for, check_body
from heed_server.attention.body import AttentionBody
from heed_server.attention.recordings import of_all_workers
from heed_server.engine.model.image_positions import image_spans

logger = init_logger("vllm.heed.attention")

MOST_AT_ONCE = 4
"""Requests of one API process that are measured at a time; others wait, so that memory stays bounded."""

Fetch = Callable[[str], Awaitable[Sequence[Sequence[Mapping[str, Any] | None]]]]
"""Asks every engine's workers what was measured for a report id."""


class Diagnostics:
    """Answers `POST /v1/attention`."""

    def __init__(self, engine_client: Any, door: Door, fetch: Fetch) -> None:
        """engine_client: behind its door. fetch: see `Fetch`."""
        self._engine, self._door, self._fetch = engine_client, door, fetch
        self._tokenizer = engine_client.renderer.tokenizer
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self._discarding: set[asyncio.Future[Any]] = set()

    async def answer(self, body: AttentionBody, state: Any) -> dict[str, Any] | ErrorResponse:
        """An `AttentionAnswer` as plain values, or vLLM's refusal.

        state: of the application, with vLLM's handlers.

        Raises:
            RefusedError: the body cannot be answered.
            RuntimeError: the workers could not do what had been admitted.
        """
        door = self._door
        check_body(body, door.model)
        request = _generation(body)
        serving = state.openai_serving_models
        exchange = self._exchange(request, serving.is_base_model, body.continuation is not None)
        longest = door.length_for(exchange)
        with context_length(longest):
            prompts = await rendered_prompts(state, request)
        if isinstance(prompts, ErrorResponse):
            return prompts
        (prompt,) = prompts
        length = len(prompt["prompt_token_ids"])
        try:
            token_ids = [*prompt["prompt_token_ids"], *self._continuation(body)]
            _check_length(body, len(token_ids), longest or door.model.max_length)
            text = partial(align, self._tokenizer, token_ids) if self._tokenizer else None
            view = PromptView(len(token_ids), text, image_spans(prompt))
            asked = asked_for(body, door.model, view, length)
        except RefusedError:
            door.items.forget(prompt)
            raise
        exchange.inspection = asked.inspection
        async with self._room:
            try:
                await self._run({**prompt, "prompt_token_ids": token_ids}, exchange)
                reports = await choice_reports(exchange, 0, 1)
                arrays = of_all_workers(await self._fetch(_report_id(exchange)))
            except BaseException:
                # The client has left, or the request has failed: nobody will ask for what the workers keep.
                self._discard(exchange)
                raise
        said = await asyncio.to_thread(measured, body, asked, arrays)
        return {
            "object": "attention",
            "model": request.model or serving.model_name(),
            "prompt_tokens": length,
            "continuation_tokens": len(token_ids) - length,
            "tokens": self._tokenizer.convert_ids_to_tokens(token_ids) if self._tokenizer else None,
            "token_ids": token_ids,
            "layers": list(asked.inspection.layers),
            "heads": list(asked.inspection.heads),
            "rows": list(asked.inspection.rows),
            "spans": [list(span) for span in asked.spans],
            "images": [[list(keys) for keys in image.keys] for image in view.images],
            **said,
            "interventions": reports,
        }

    def _discard(self, exchange: Exchange) -> None:
        """Let the workers forget what they have measured, while nobody waits for it."""
        if exchange.engine_requests:
            task = asyncio.ensure_future(self._fetch(_report_id(exchange)))
            self._discarding.add(task)
            task.add_done_callback(self._discarded)

    def _discarded(self, task: asyncio.Future[Any]) -> None:
        self._discarding.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("Heed: a recording was not discarded: %s", task.exception())

    def _exchange(
        self,
        request: HeedChatRequest | HeedCompletionRequest,
        is_served: IsServed,
        continued: bool,
    ) -> Exchange:
        """The request's interventions, of which there are none beside a continuation."""
        exchange = exchange_of(request, self._door.profiles, is_served, self._door.metrics)
        if exchange is None:
            return Exchange((), "request", asked=False)
        if continued and exchange.methods:
            apart = "a continuation cannot be combined with interventions"
            if exchange.source == "request":
                raise RefusedError(f"{apart}: send one of them", "continuation")
            exchange.skipped = apart
        return exchange

    def _continuation(self, body: AttentionBody) -> list[int]:
        if not isinstance(body.continuation, str):
            return body.continuation or []
        if not body.continuation:
            raise RefusedError("the continuation must not be empty", "continuation")
        if self._tokenizer is None:
            raise RefusedError(
                "this server has no tokenizer: give the continuation as token ids", "continuation"
            )
        return list(self._tokenizer.encode(body.continuation, add_special_tokens=False))

    async def _run(self, prompt: Any, exchange: Exchange) -> None:
        # Rows out of the prefix cache have no queries, so there would be nothing to measure.
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        token = CURRENT.set(exchange)
        try:
            generator = self._engine.generate(prompt, params, f"attn-{uuid4().hex}")
        finally:
            CURRENT.reset(token)
        async for _ in generator:
            pass


def _report_id(exchange: Exchange) -> str:
    return exchange.engine_requests[0].report_id or ""


def _check_length(body: AttentionBody, tokens: int, longest: int) -> None:
    if tokens >= longest:
        raise RefusedError(
            f"there are {tokens} tokens, and at most {longest - 1} can be looked at",
            "continuation" if body.continuation else "messages" if body.messages else "prompt",
        )


def _generation(body: AttentionBody) -> HeedChatRequest | HeedCompletionRequest:
    """The request that has the same prompt and interventions."""
    fields = {"model": body.model, "interventions": body.interventions, "max_tokens": 1}
    request: HeedChatRequest | HeedCompletionRequest
    if body.messages is not None:
        request = HeedChatRequest.model_validate({**fields, "messages": body.messages})
    else:
        request = HeedCompletionRequest.model_validate({**fields, "prompt": body.prompt})
    return request
