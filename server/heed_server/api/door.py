"""The engine's door: every generation passes here with its rendered prompt, once per prompt.

A plain function stands in front of the engine client's `generate`. Plain requests go straight on;
others are admitted (`admission.py`), and watched until they end.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import cached_property, partial
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from heed_interventions.errors import InterventionError
from heed_interventions.views import ModelView
from heed_kernels.table import EditTable
from heed_server.api.activity import Activity
from heed_server.api.admission import Admission, user_salt
from heed_server.api.cache_room import CacheRoom
from heed_server.api.context_length import context_length
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import CURRENT, EngineRequest, Exchange, RehearsalOver
from heed_server.api.reports import ReportCollector, count_edited_tokens
from heed_server.api.request_spans import RequestSpans
from heed_server.api.twins import TwinRequest, TwinRunner
from heed_server.api.unsent_items import UnsentItems
from heed_server.metrics import Metrics
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings

Generate = Callable[..., AsyncGenerator[Any, None]]
RunTwin = Callable[[], Awaitable[int]]
"""Runs a request's twin; see `TwinRunner.run`."""


class Door(Admission):
    """Lets requests through to an asynchronous engine; see `Admission` for the rest."""

    def __init__(
        self,
        model: ModelView,
        settings: Settings,
        profiles: ProfileStore,
        tokenizer: Any,
        table: EditTable | None,
        reports: ReportCollector,
        metrics: Metrics,
        activity: Activity,
        cache: CacheRoom,
    ) -> None:
        super().__init__(model, settings, profiles, tokenizer, table, metrics, cache)
        self._reports = reports
        self._activity = activity
        self._engine_client: Any = None
        self.items = UnsentItems(None)
        self._spans: RequestSpans | None = None

    @cached_property
    def _twins(self) -> TwinRunner:
        """Made when the first twin is to run: until then nobody stands before the engine's statistics."""
        return TwinRunner(self._engine_client)

    def stand_before(self, engine_client: Any, spans: RequestSpans | None = None) -> None:
        """Put the door in front of `engine_client.generate`.

        spans: of its requests, where the server writes traces.
        """
        self._engine_client, self._spans = engine_client, spans
        self.items = UnsentItems(engine_client.renderer.mm_processor_cache)
        engine_client.generate = partial(self.generate, engine_client.generate)

    def generate(
        self,
        stock: Generate,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        **rest: Any,
    ) -> AsyncGenerator[Any, None]:
        """What `AsyncLLM.generate` is to its callers.

        Raises:
            RefusedError: as `admit`; the exchange keeps it, because some of vLLM's handlers turn
                every error into one of their own.
        """
        exchange = CURRENT.get()
        lora = rest.get("lora_request")
        adapter = lora.lora_name if lora is not None else None
        if exchange is not None and exchange.rehearsal:
            return self._rehearse(exchange, prompt, sampling_params, adapter)
        try:
            admitted = self.admit(exchange, prompt, sampling_params, adapter)
        except RefusedError as error:
            self.items.forget(prompt)
            if exchange is not None:
                exchange.refusal = error
            raise
        params, request = admitted.params, admitted.request
        prompt = self.items.completed(admitted.prompt)
        run_twin: RunTwin | None = None
        if admitted.twin is not None:
            rest = self._twins.together(rest)
            run_twin = partial(self._before, prompt, stock, admitted.twin, rest)
            self.items.hold(prompt)
        generator = stock(prompt, params, request_id, **rest)
        if request is None:
            return generator
        if request.report_id is None:
            self.count(request)
            return generator
        if admitted.length is not None:
            generator = submitted(generator, admitted.length)
        kind = params.output_kind
        outputs = self._observed(generator, request, request.report_id, kind, run_twin)
        if self._spans is not None:
            return self._spans.of(outputs, request_id, request)
        return outputs

    def _rehearse(
        self, exchange: Exchange, prompt: Any, params: SamplingParams, adapter: str | None
    ) -> AsyncGenerator[Any, None]:
        """What `generate` finds out, with nothing counted and nothing sent to the engine."""
        first = not exchange.engine_requests
        try:
            user_salt(prompt, params)
            self.enter(exchange, prompt, params, adapter)
        except InterventionError as error:
            raise refused(error) from error
        finally:
            self.items.forget(prompt)
        return end_of_rehearsal(first)

    async def _before(
        self, prompt: Any, stock: Generate, twin: TwinRequest, rest: Mapping[str, Any]
    ) -> int:
        """Run the twin, while `prompt` waits; see `TwinRunner.run`."""
        with self.items.waiting(prompt):
            return await self._twins.run(stock, twin, rest)

    async def _observed(
        self,
        generator: AsyncGenerator[Any, None],
        admitted: EngineRequest,
        report_id: str,
        kind: RequestOutputKind,
        run_twin: RunTwin | None,
    ) -> AsyncGenerator[Any, None]:
        # The engine's own generator is closed with this one: that is how an abort gets through.
        tokens = admitted.completion_tokens
        self._activity.begin()
        self.count(admitted)
        try:
            if run_twin is not None:
                admitted.twin_cached = await run_twin()
            async for output in generator:
                for choice in output.outputs:
                    before = tokens.get(choice.index, 0) if kind == RequestOutputKind.DELTA else 0
                    tokens[choice.index] = before + len(choice.token_ids)
                yield output
        finally:
            self._activity.end()
            admitted.ran = self._reports.collect(report_id)
            admitted.ran.add_done_callback(partial(count_edited_tokens, admitted, self.metrics))
            await generator.aclose()


async def submitted(
    generator: AsyncGenerator[Any, None], length: int | None
) -> AsyncGenerator[Any, None]:
    """vLLM's generator, which checks the prompt again when it submits it, in its first step."""
    try:
        with context_length(length):
            first = await anext(generator, None)
        if first is not None:
            yield first
            async for output in generator:
                yield output
    finally:
        await generator.aclose()


async def end_of_rehearsal(first: bool) -> AsyncGenerator[Any, None]:
    """In place of an answer. vLLM reads all prompts' answers at once, and one of them speaks for all."""
    if not first:
        # Until vLLM, which the first has ended, cancels it.
        yield await asyncio.Event().wait()
    raise RehearsalOver
