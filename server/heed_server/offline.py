"""vLLM's `LLM` class with interventions, for scripts and notebooks.

    from heed_server.offline import LLM

    llm = LLM("heed-tiny")
    (output,) = llm.generate("The film was", interventions=[{"method": "zerotuning", "gamma": 1.6}])
    output.outputs[0].text, output.interventions

Checks, errors and reports are those of the server.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllm
from prometheus_client import CollectorRegistry
from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq

from heed_interventions.errors import InterventionError
from heed_server.api.admission import Admission
from heed_server.api.cache_room import CacheRoom
from heed_server.api.errors import RefusedError, refused
from heed_server.api.exchange import EngineRequest, Exchange
from heed_server.api.reports import assemble, of_workers
from heed_server.api.requests import exchange_from
from heed_server.api.served_model import (
    DESCRIBE,
    no_support,
    profiles_for,
    runs_without_heed,
    scratch_table,
    served_identity,
    support_of,
    view_of,
)
from heed_server.api.unsent_items import UnsentItems
from heed_server.engine.model.model_support import ModelSupport
from heed_server.engine.plugin import register
from heed_server.launcher import plugin_names
from heed_server.metrics import Metrics
from heed_server.models import bundled_model
from heed_server.settings import Settings, profiles_directory

__all__ = ["LLM", "RefusedError"]
NO_COMPANION = "the offline class does not run prompts a second time without their images"


class LLM(vllm.LLM):  # type: ignore[misc]
    """`vllm.LLM`, whose `generate` and `chat` take `interventions`.

    model: a bundled one by its name, or whatever vLLM takes. profiles: directory of profiles, a
    bundled model's own by default. allow_privileged_interventions: as `heed serve`'s flag. Everything
    else is vLLM's.

    Raises:
        SettingsError: there is no such directory of profiles.
    """

    def __init__(
        self,
        model: str = "heed-tiny",
        *,
        profiles: str | Path | None = None,
        allow_privileged_interventions: bool = False,
        **options: Any,
    ) -> None:
        bundled = bundled_model(model)
        if bundled is not None:
            model = str(bundled.directory)
            profiles = profiles or bundled.profiles
            options = bundled.engine_options(os.environ) | options
        settings = Settings(
            profiles=profiles_directory(Path(profiles)) if profiles is not None else None,
            allow_privileged=allow_privileged_interventions,
        )
        os.environ["VLLM_PLUGINS"] = ",".join(plugin_names(os.environ.get("VLLM_PLUGINS")))
        # vLLM loads its plug-ins once in a process, which may have been before Heed was named.
        register()
        super().__init__(model, **options)
        self._admission = self._admission_with(settings)
        self._waiting: Iterator[Exchange | None] = iter(())
        self._running: dict[str, EngineRequest] = {}

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, interventions: Any = None, **rest: Any
    ) -> list[Any]:
        """As vLLM's, with interventions.

        interventions: one list for all prompts, or a list of such lists, one for each prompt; as in
        a request's body. Each output has its reports in `interventions`, and with several choices
        each of its `outputs` has its own.

        Raises:
            RefusedError: with `message` and `parameter`, the path of what cannot be used. Nothing
                has been generated.
        """
        exchanges = self._exchanges(interventions, len(prompt_to_seq(prompts)))
        return self._carried(exchanges, super().generate, prompts, sampling_params, **rest)

    def chat(
        self, messages: Any, sampling_params: Any = None, *args: Any, interventions: Any = None,
        **rest: Any,
    ) -> list[Any]:  # fmt: skip
        """As vLLM's, with interventions: see `generate`."""
        exchanges = self._exchanges(interventions, len(conversation_to_seq(messages)))
        return self._carried(exchanges, super().chat, messages, sampling_params, *args, **rest)

    def _admission_with(self, settings: Settings) -> Admission:
        support = self._describe()
        view = replace(view_of(support, self.model_config), companion_obstacle=NO_COMPANION)
        identity = served_identity(self.model_config, support)
        return Admission(
            model=view,
            settings=settings,
            profiles=profiles_for(settings, identity, view),
            tokenizer=self.llm_engine.tokenizer,
            table=scratch_table(support),
            metrics=Metrics(support.backend or "none", CollectorRegistry()),
            cache=CacheRoom(support.kv_blocks, support.block_size),
        )

    def _describe(self) -> ModelSupport:
        """The model as the first worker sees it; one without Heed refuses edits."""
        try:
            return support_of(self.collective_rpc(DESCRIBE)[0])
        except Exception as error:
            if not runs_without_heed(error):
                raise
            return no_support(self.model_config.max_model_len)

    def _exchanges(self, interventions: Any, prompts: int) -> list[Exchange | None]:
        """One for each prompt."""
        paired = isinstance(interventions, Sequence) and any(
            isinstance(each, list) for each in interventions
        )
        lists = interventions if paired else [interventions] * prompts
        if len(lists) != prompts:
            raise RefusedError(
                f"there are {prompts} prompts and {len(lists)} lists of interventions",
                "interventions",
            )
        loaded = self._admission.profiles.loaded
        try:
            return [exchange_from(each, loaded) for each in lists]
        except InterventionError as error:
            raise refused(error) from error

    def _carried(
        self, exchanges: list[Exchange | None], run: Any, *args: Any, **rest: Any
    ) -> list[Any]:
        self._waiting, self._running = iter(exchanges), {}
        try:
            outputs: list[Any] = run(*args, **rest)
        finally:
            self._waiting = iter(())
        self._report(outputs)
        return outputs

    def _add_request(
        self, prompt: Any, params: Any, lora_request: Any = None, priority: int = 0
    ) -> str:
        """As vLLM's, for each prompt in turn; here it has been rendered."""
        exchange = next(self._waiting, None)
        if isinstance(params, vllm.SamplingParams):
            adapter = lora_request.lora_name if lora_request is not None else None
            try:
                admitted = self._admission.admit(exchange, prompt, params, adapter)
            except RefusedError:
                UnsentItems(self.llm_engine.renderer.mm_processor_cache).forget(prompt)
                raise
            prompt, params = admitted.prompt, admitted.params
            if admitted.request is not None:
                self._running[str(self.request_counter.counter)] = admitted.request
        return str(super()._add_request(prompt, params, lora_request, priority))

    def _report(self, outputs: list[Any]) -> None:
        """Set what ran on the outputs.

        Raises:
            RuntimeError: as `assemble`.
        """
        ids = [each.report_id for each in self._running.values() if each.report_id is not None]
        told = of_workers(self.collective_rpc("heed_reports", args=(ids,))) if ids else {}
        for output in outputs:
            request = self._running.get(output.request_id)
            for choice in output.outputs:
                choice.interventions = []
                if request is not None:
                    request.completion_tokens[choice.index] = len(choice.token_ids)
                    ran = told.get(request.report_id or "", {})
                    choice.interventions = assemble(request, choice.index, ran)
            output.interventions = output.outputs[0].interventions
