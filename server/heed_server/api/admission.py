"""What a rendered prompt needs before it may go to the engine with interventions.

The interventions are resolved (spans to positions, rows, cache class), the prefix cache is salted, and
the compiled set travels on in the sampling parameters. Every door of the server and the offline engine
let requests through by way of this one class.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from vllm.sampling_params import SamplingParams

from heed_interventions.errors import InterventionError
from heed_interventions.method import CacheClass, Method
from heed_interventions.resolve import Resolution, report_of, resolve
from heed_interventions.text.token_text import align
from heed_interventions.views import ModelView, PromptView
from heed_kernels.beside.patches import at_worst
from heed_kernels.edits import Edit, VisibleKeys
from heed_kernels.errors import EditError
from heed_kernels.inspection import Inspection
from heed_kernels.table import EditTable
from heed_server.api.cache_room import CacheRoom
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import EngineRequest, Exchange
from heed_server.api.image_attention import on_images
from heed_server.api.reserved import reserved
from heed_server.api.twins import TwinRequest, twin_of
from heed_server.engine.model.image_positions import image_spans
from heed_server.engine.payload import RESERVED_KEY, Payload, pack
from heed_server.metrics import Metrics
from heed_server.profiles.fit import check_adapter
from heed_server.profiles.store import ProfileStore
from heed_server.salt import SALT_PREFIX, salted
from heed_server.settings import Settings

MOST_WORK = 1 << 27
"""Most weights that are made again for one inspection (`Inspection.work`): the steps of the prompt, and
with them whoever shares a step, wait for them."""


@dataclass(frozen=True)
class Admitted:
    """A prompt as it goes on to the engine.

    request: None for a prompt that carries no interventions.
    length: how long the request may be where that is not the model's own length.
    twin: what has to run before it, if anything has.
    """

    prompt: Any
    params: SamplingParams
    request: EngineRequest | None = None
    length: int | None = None
    twin: TwinRequest | None = None


class Admission:
    """Resolves interventions and admits prompts.

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
        metrics: Metrics,
        cache: CacheRoom,
    ) -> None:
        self.model = model
        self.settings = settings
        self.profiles = profiles
        self.metrics = metrics
        self._tokenizer = tokenizer
        self._table = table
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

    def admit(
        self,
        exchange: Exchange | None,
        prompt: Any,
        params: SamplingParams,
        adapter: str | None = None,
    ) -> Admitted:
        """One rendered prompt of an exchange, which gets an engine request more.

        exchange: None for a plain request. adapter: the LoRA adapter that it asks for, if it does.

        Raises:
            RefusedError: the interventions cannot be carried out for this prompt, or something that
                is Heed's own came from outside.
        """
        try:
            salt = user_salt(prompt, params)
        except RefusedError:
            self.metrics.rejected("reserved")
            raise
        if exchange is None or not (exchange.methods or exchange.inspection):
            return Admitted(prompt, params)
        if exchange.skipped is not None and exchange.engine_requests:
            # A beam search comes once per beam and step.
            return Admitted(prompt, params)
        start = time.perf_counter()
        try:
            request, params, length = self.enter(exchange, prompt, params, adapter)
        except InterventionError as error:
            self.metrics.rejected(error.reason, [method.method for method in exchange.methods])
            raise refused(error) from error
        self.metrics.compiled(time.perf_counter() - start)
        resolution = request.resolution
        if exchange.inspection is not None:
            check_work(exchange.inspection.work(resolution.edits))
        elif not resolution.edits:
            return Admitted(prompt, params, request)
        request.report_id = uuid4().hex
        twin = twin_of(prompt, resolution.edits, request.report_id, params.n, exchange.inspection)
        payload = self._payload(exchange, request, request.report_id, prompt, params.n)
        params = params.clone()
        params.extra_args = {**(params.extra_args or {}), RESERVED_KEY: pack(payload)}
        if resolution.digest is not None:
            prompt = {**prompt, "cache_salt": salted(salt, resolution.digest)}
        return Admitted(prompt, params, request, length, twin)

    def _payload(
        self, exchange: Exchange, request: EngineRequest, report: str, prompt: Any, choices: int
    ) -> Payload:
        """What the workers are to do for an engine request; report: the id by which they are asked."""
        detailed = tuple(
            index for index, method in enumerate(exchange.methods) if method.report == "full"
        )
        inspection, reported = exchange.inspection, False
        if inspection is None and detailed:
            inspection = self._on_images(prompt, request.prompt_length)
            reported = inspection is not None
        return Payload(
            report=report,
            choices=choices,
            prompt_length=request.prompt_length,
            publication_limit=request.resolution.publication_limit,
            edits=request.resolution.edits,
            detailed=detailed,
            inspection=inspection,
            inspection_reported=reported,
        )

    def _on_images(self, prompt: Mapping[str, Any], length: int) -> Inspection | None:
        images = image_spans(prompt)
        return on_images(images, length, self.model) if images else None

    def count(self, request: EngineRequest) -> None:
        """An admitted request goes to the engine."""
        self.metrics.resolved(request.resolution.reports)
        if request.resolution.digest is not None:
            self.metrics.salted()

    def enter(
        self, exchange: Exchange, prompt: Any, params: SamplingParams, adapter: str | None
    ) -> tuple[EngineRequest, SamplingParams, int | None]:
        """One more engine request of the exchange, its parameters, and how long it may be (`Admitted`).

        Raises:
            InterventionError: as `resolve`, or the prompt is too long.
        """
        resolution, prompt_length = self.resolve(exchange, prompt, params.max_tokens, adapter)
        params, length = self._bounded(params, resolution, prompt_length)
        request = EngineRequest(resolution, prompt_length)
        exchange.engine_requests.append(request)
        return request, params, length

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
            self._table.release(self._table.insert(at_worst(resolution.edits)))
        except EditError as error:
            raise InterventionError(
                f"the interventions are too many to be carried out together: {error}",
                param="interventions",
                reason="too_many",
            ) from error


def check_work(work: int) -> None:
    """Raises `RefusedError` where an inspection would hold up others for too long."""
    if work > MOST_WORK:
        raise RefusedError(
            f"{work} weights would have to be computed, and {MOST_WORK} are the most: name fewer rows, "
            "layers or heads, or leave out dormancy, which is of all rows",
            "include",
        )


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
