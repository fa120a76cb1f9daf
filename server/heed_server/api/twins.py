"""Twins: one prompt is run without its images, plainly, before the request that is compared with it.

A twin is a request of the engine like any other, of one token that nobody reads. It is an ordinary text
prefill, so it reads and writes plain blocks of the prefix cache under the request's own salt. The workers
keep what its last row gives until the request takes it (`engine/books/twins.py`).
"""

import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.output_processor import OutputProcessorOutput
from vllm.v1.metrics.stats import IterationStats

from heed_kernels.edits import Edit, HeadChoice, KeyRanges
from heed_kernels.inspection import Inspection
from heed_server.engine.payload import RESERVED_KEY, Payload, Twin, pack

_NAME = "heed-twin-"
"""Names of twins begin so; vLLM's own begin with the kind of their request."""
_SHARED = ("lora_request", "priority", "trace_headers", "data_parallel_rank")
"""What a twin has in common with the request that it runs for."""
_ENDS = ("stop", "length")
"""Of a request that was computed: its one token may be the end token."""


@dataclass(frozen=True)
class TwinRequest:
    """A twin as it goes to the engine."""

    prompt: Any
    params: SamplingParams


def twin_of(
    prompt: Mapping[str, Any],
    edits: Sequence[Edit],
    report: str,
    choices: int,
    inspection: Inspection | None = None,
) -> TwinRequest | None:
    """What has to run before a request with these edits and this inspection, if anything has.

    prompt: as it was rendered, with the request's own salt. report, choices: as in `Payload`.
    """
    compared = [
        (edit.keys, {layer for layer, mask in enumerate(edit.on.masks) if mask}, choices)
        for edit in edits
        if isinstance(edit, HeadChoice) and edit.twin
    ]
    if inspection is not None and inspection.without:
        compared.append((KeyRanges(inspection.without), set(inspection.layers), choices))
    if not compared:
        return None
    # Whoever compares leaves out all images, so that one twin serves them all.
    (token_ids,) = {tuple(without(prompt["prompt_token_ids"], keys)) for keys, _, _ in compared}
    layers = tuple(sorted(set[int]().union(*(layers for _, layers, _ in compared))))
    taken = sum(times for _, _, times in compared)
    payload = Payload(
        report=uuid4().hex,
        choices=1,
        prompt_length=len(token_ids),
        publication_limit=None,
        edits=(),
        twin=Twin(report, taken, layers),
    )
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={RESERVED_KEY: pack(payload)},
    )
    return TwinRequest(tokens_input(list(token_ids), cache_salt=prompt.get("cache_salt")), params)


def without(token_ids: Sequence[int], keys: KeyRanges) -> list[int]:
    """The tokens that are not at `keys`."""
    left, start = list[int](), 0
    for first, end in [*keys.ranges, (len(token_ids), len(token_ids))]:
        left += token_ids[start:first]
        start = end
    return left


class TwinRunner:
    """Runs twins on an engine client, out of sight of its request metrics."""

    def __init__(self, engine_client: Any) -> None:
        self._core = engine_client.engine_core
        self._running = 0
        processor = engine_client.output_processor
        self._process = processor.process_outputs
        processor.process_outputs = self._process_outputs

    def together(self, rest: Mapping[str, Any]) -> dict[str, Any]:
        """The further arguments of `generate`, with an engine named where there are several: a request has to
        come to the workers that its twin has been to.

        It is the one with the fewest requests of this process, as in vLLM's own choice.
        """
        engines = getattr(self._core, "core_engines", ())
        if len(engines) < 2 or rest.get("data_parallel_rank") is not None:
            return dict(rest)
        count = self._core.engine_inflight
        rank = min(range(len(engines)), key=lambda each: (count[engines[each]], random.random()))
        return {**rest, "data_parallel_rank": rank}

    async def run(
        self,
        generate: Callable[..., AsyncGenerator[Any, None]],
        twin: TwinRequest,
        rest: Mapping[str, Any],
    ) -> int:
        """Until the twin has ended. Returns how many tokens of its prompt came out of the prefix cache.

        generate: the engine client's own. rest: the further arguments of the request's `generate`.

        Raises:
            RuntimeError: it did not come to its end. Errors of the engine are passed on.
        """
        shared = {name: rest[name] for name in _SHARED if name in rest}
        generator = generate(twin.prompt, twin.params, f"{_NAME}{uuid4().hex}", **shared)
        last: Any = None
        self._running += 1
        try:
            async for output in generator:
                last = output
        finally:
            self._running -= 1
            await generator.aclose()
        reason = last.outputs[0].finish_reason if last is not None else "nothing"
        if reason not in _ENDS:
            raise RuntimeError(f"the run of the prompt without its image ended in {reason}")
        return int(last.num_cached_tokens or 0)

    def _process_outputs(
        self,
        engine_core_outputs: Sequence[Any],
        engine_core_timestamp: float | None = None,
        iteration_stats: IterationStats | None = None,
        **rest: Any,
    ) -> OutputProcessorOutput:
        """`OutputProcessor.process_outputs`, with twins measured into statistics that nobody reads."""
        outputs, timestamp = engine_core_outputs, engine_core_timestamp
        if iteration_stats is None or not self._running:
            return self._process(outputs, timestamp, iteration_stats, **rest)
        twins = [each for each in outputs if each.request_id.startswith(_NAME)]
        others = [each for each in outputs if not each.request_id.startswith(_NAME)]
        hidden = self._process(twins, timestamp, IterationStats(), **rest)
        shown = self._process(others, timestamp, iteration_stats, **rest)
        return OutputProcessorOutput(
            [*hidden.request_outputs, *shown.request_outputs],
            [*hidden.reqs_to_abort, *shown.reqs_to_abort],
        )
