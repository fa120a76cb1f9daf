"""The engine's door: every generation passes here with its rendered prompt, once per prompt.

A plain function stands in front of the engine client's `generate`. Plain requests go straight on.
For others the interventions are resolved (spans to positions, rows, cache class), the prefix cache
is salted, and the compiled set travels on in the sampling parameters.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from vllm.sampling_params import RequestOutputKind, SamplingParams

from heed_interventions.errors import InterventionError
from heed_interventions.method import CacheClass, Method
from heed_interventions.resolve import Resolution, report_of, resolve
from heed_interventions.token_text import align
from heed_interventions.views import ModelView, PromptView
from heed_kernels.edits import Edit, VisibleKeys
from heed_kernels.errors import EditError
from heed_kernels.table import EditTable
from heed_server.api.activity import Activity
from heed_server.api.cache_room import CacheRoom
from heed_server.api.context_length import context_length
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import CURRENT, EngineRequest, Exchange, RehearsalOver
from heed_server.api.reports import ReportCollector, count_edited_tokens
from heed_server.api.reserved import reserved
from heed_server.engine.image_positions import image_spans
from heed_server.engine.payload import RESERVED_KEY, Payload, pack
from heed_server.metrics import Metrics
from heed_server.profiles.fit import check_adapter
from heed_server.profiles.store import ProfileStore
from heed_server.salt import SALT_PREFIX, salted
from heed_server.settings import Settings

Generate = Callable[..., AsyncGenerator[Any, None]]


class Door:
    """Resolves interventions and lets requests through.

    table: an edit table of the served model's shape, in which each set is compiled once before it
        is admitted, so that a set that no worker could take is refused here.
    cache: the KV cache of an engine.
    """

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
        self.model = model
        self.settings = settings
        self.profiles = profiles
        self.metrics = metrics
        self._tokenizer = tokenizer
        self._table = table
        self._reports = reports
        self._activity = activity
        self._cache = cache

    def length_for(self, exchange: Exchange) -> int | None:
        """How long a request may be that is going to be rendered; None: as the model's context."""
        longest = self.settings.max_streaming_length
        if longest is None or exchange.skipped is not None:
            return None
        model = self.model
        if model.unsupported is not None or not model.rotary:
            return None
        bounded = any(method.bounds_positions(model) for method in exchange.methods)
        return longest if bounded else None

    def stand_before(self, engine_client: Any) -> None:
        """Put the door in front of `engine_client.generate`."""
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
            RefusedError: the interventions cannot be carried out for this prompt, or something that
                is Heed's own came from outside.
        """
        exchange = CURRENT.get()
        if exchange is not None and exchange.rehearsal:
            return self._rehearse(exchange, prompt, sampling_params, rest.get("lora_request"))
        try:
            salt = user_salt(prompt, sampling_params)
        except RefusedError:
            self.metrics.rejected("reserved")
            raise
        if exchange is None or not exchange.methods:
            return stock(prompt, sampling_params, request_id, **rest)
        if exchange.skipped is not None and exchange.engine_requests:
            # A beam search comes once per beam and step.
            return stock(prompt, sampling_params, request_id, **rest)
        start = time.perf_counter()
        try:
            admitted, sampling_params, length = self._admit(
                exchange, prompt, sampling_params, rest.get("lora_request")
            )
        except InterventionError as error:
            self.metrics.rejected(error.reason, [method.method for method in exchange.methods])
            raise refused(error) from error
        self.metrics.compiled(time.perf_counter() - start)
        resolution = admitted.resolution
        if not resolution.edits:
            self.metrics.resolved(resolution.reports)
            return stock(prompt, sampling_params, request_id, **rest)
        payload = Payload(
            report=uuid4().hex,
            choices=sampling_params.n,
            prompt_length=admitted.prompt_length,
            publication_limit=resolution.publication_limit,
            edits=resolution.edits,
            detailed=tuple(
                index for index, method in enumerate(exchange.methods) if method.report == "full"
            ),
        )
        sampling_params = sampling_params.clone()
        extra_args = sampling_params.extra_args or {}
        sampling_params.extra_args = {**extra_args, RESERVED_KEY: pack(payload)}
        if resolution.digest is not None:
            prompt = {**prompt, "cache_salt": salted(salt, resolution.digest)}
        generator = stock(prompt, sampling_params, request_id, **rest)
        if length is not None:
            generator = submitted(generator, length)
        return self._observed(generator, admitted, payload.report, sampling_params.output_kind)

    def _admit(
        self, exchange: Exchange, prompt: Any, params: SamplingParams, lora: Any
    ) -> tuple[EngineRequest, SamplingParams, int | None]:
        """One more engine request of the exchange, with what `_bounded` gives. Raises `InterventionError`."""
        adapter = lora.lora_name if lora is not None else None
        resolution, prompt_length = self.resolve(exchange, prompt, params.max_tokens, adapter)
        params, length = self._bounded(params, resolution, prompt_length)
        admitted = EngineRequest(resolution, prompt_length)
        exchange.engine_requests.append(admitted)
        return admitted, params, length

    def _rehearse(
        self, exchange: Exchange, prompt: Any, params: SamplingParams, lora: Any
    ) -> AsyncGenerator[Any, None]:
        """What `generate` finds out, with nothing counted and nothing sent to the engine."""
        user_salt(prompt, params)
        first = not exchange.engine_requests
        try:
            self._admit(exchange, prompt, params, lora)
        except InterventionError as error:
            raise refused(error) from error
        return end_of_rehearsal(first)

    def resolve(
        self, exchange: Exchange, prompt: Any, max_tokens: int | None, adapter: str | None = None
    ) -> tuple[Resolution, int]:
        """The exchange's interventions for one rendered prompt, and that prompt's length in tokens.

        max_tokens: of the answer; None for as many as the length allows.
        adapter: the LoRA adapter that the request asks for, if it does.

        Raises:
            InterventionError: they cannot be carried out; never for the server's defaults, which
                are left out where they do not fit.
        """
        token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        length = len(token_ids) if token_ids is not None else 0
        try:
            if exchange.skipped is not None or (token_ids is None and exchange.methods):
                reason = exchange.skipped or "the prompt is of embeddings, not of text or token ids"
                raise InterventionError(reason, "interventions", reason="unsupported")
            if adapter is not None:
                check_adapter(exchange.methods, adapter)
            view = PromptView(
                length=length,
                text=partial(align, self._tokenizer, token_ids or ()) if self._tokenizer else None,
                images=image_spans(prompt) if token_ids else (),
            )
            resolution = resolve(
                exchange.methods,
                self.model,
                view,
                sources=[exchange.source] * len(exchange.methods),
                allow_privileged=self.settings.allow_privileged,
                check=lambda edit: self._check_room(edit, length, max_tokens),
                policy=self.settings.policy,
            )
            self._compile(resolution)
        except InterventionError as error:
            if exchange.source == "request":
                raise
            return skipped(exchange.methods, error.message), length
        return resolution, length

    def _bounded(
        self, params: SamplingParams, resolution: Resolution, prompt_length: int
    ) -> tuple[SamplingParams, int | None]:
        """The parameters within the length that holds for the request, and that length where it is not
        the model's own.

        Raises:
            InterventionError: the prompt is beyond it.
        """
        lifted = self._lifted_length(resolution.edits)
        room = self.model.max_length - prompt_length
        if self.settings.max_streaming_length is not None and lifted is None:
            # A default that was to lift the limit, and was then left out of this request.
            if room < 1:
                raise InterventionError(
                    f"This model's maximum context length is {self.model.max_length} tokens. "
                    f"However, your prompt contains {prompt_length} input tokens.",
                    "input_tokens",
                    reason="context",
                )
            if params.max_tokens is None or params.max_tokens > room:
                params = params.clone()
                params.max_tokens = room
        return params, lifted

    def _lifted_length(self, edits: Iterable[Edit]) -> int | None:
        """How long a request with these edits may be where that is not the model's own length."""
        bounded = any(isinstance(edit, VisibleKeys) and edit.rolling for edit in edits)
        return self.settings.max_streaming_length if bounded else None

    def _check_room(self, edit: Edit, prompt_length: int, max_tokens: int | None) -> None:
        longest = self._lifted_length([edit]) or self.model.max_length
        room = longest - prompt_length
        answer = room if max_tokens is None else min(max_tokens, room)
        self._cache.check(edit, prompt_length, prompt_length + answer)

    def _compile(self, resolution: Resolution) -> None:
        if not resolution.edits or self._table is None:
            return
        try:
            self._table.release(self._table.insert(resolution.edits))
        except EditError as error:
            raise InterventionError(
                f"the interventions are too many to be carried out together: {error}",
                param="interventions",
                reason="too_many",
            ) from error

    async def _observed(
        self,
        generator: AsyncGenerator[Any, None],
        admitted: EngineRequest,
        report_id: str,
        kind: RequestOutputKind,
    ) -> AsyncGenerator[Any, None]:
        # The engine's own generator is closed with this one: that is how an abort gets through.
        tokens = admitted.completion_tokens
        self._activity.begin()
        self.metrics.resolved(admitted.resolution.reports)
        if admitted.resolution.digest is not None:
            self.metrics.salted()
        try:
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


def user_salt(prompt: Any, params: SamplingParams) -> str | None:
    """The request's own `cache_salt`.

    Raises:
        RefusedError: it begins like one of Heed's, or the parameters hold Heed's own key.
    """
    if RESERVED_KEY in (params.extra_args or {}):
        raise reserved(f"vllm_xargs.{RESERVED_KEY}")
    salt: str | None = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
    if salt and salt.startswith(SALT_PREFIX):
        raise RefusedError(
            f"a cache_salt must not begin with {SALT_PREFIX!r}, which is reserved", "cache_salt"
        )
    return salt


def skipped(methods: Sequence[Method], reason: str) -> Resolution:
    """A plain resolution of the server's defaults, in which each is left out for `reason`."""
    reports = tuple(
        report_of(method, "skipped", "default") | {"reason": reason} for method in methods
    )
    return Resolution((), CacheClass.SHARED, None, None, reports, (None,) * len(reports))
