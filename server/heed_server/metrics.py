"""Heed's metrics, registered in the API process beside vLLM's; labels come from bounded sets only."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from heed_interventions.registry import METHODS
from heed_server.engine.versions import installed_vllm
from heed_server.version import __version__

_ATTENTION_BUCKETS = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    1e-2,
    2.5e-2,
    5e-2,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
)
_MASS_BUCKETS = tuple(step / 10 for step in range(1, 10))
_COMPILE_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.25)


class Metrics:
    """One instance per API process.

    Plain counters, gauges and histograms: with several API processes prometheus-client merges
    those through files, which custom collectors and Info do not survive.
    """

    def __init__(self, backend: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "heed_requests_total",
            "Interventions in requests, by method and outcome (applied, neutral, skipped, rejected).",
            ["method", "outcome"],
            registry=registry,
        )
        self._rejections = Counter(
            "heed_rejections_total",
            "Requests that Heed refused, by reason: for their interventions, or because too many were open.",
            ["reason"],
            registry=registry,
        )
        self._edited_tokens = Counter(
            "heed_edited_tokens_total",
            "Tokens whose rows were computed with an edit, by method and phase.",
            ["method", "phase"],
            registry=registry,
        )
        self._evicted_tokens = Counter(
            "heed_kv_tokens_evicted_total",
            "Tokens whose keys and values requests let go while they ran, per layer and KV head.",
            ["method"],
            registry=registry,
        )
        self._freed_blocks = Counter(
            "heed_kv_blocks_freed_total",
            "KV blocks that engine requests gave back while they ran, beyond those that survivors took. "
            "Less heed_kv_blocks_taken_total where requests share a prompt.",
            ["method"],
            registry=registry,
        )
        self._taken_blocks = Counter(
            "heed_kv_blocks_taken_total",
            "KV blocks that survivors took beyond those that engine requests gave back: "
            "others held the prompt, and whoever holds it last gives it back.",
            ["method"],
            registry=registry,
        )
        self._salted = Counter(
            "heed_cache_salted_requests_total",
            "Engine requests whose prefix-cache blocks are kept apart by a salt of their edits.",
            registry=registry,
        )
        self._rows = Gauge(
            "heed_edit_table_rows",
            "Rows of the workers' edit tables in use, over all engines.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._compile_seconds = Histogram(
            "heed_edit_table_compile_seconds",
            "Time to resolve a request's interventions and compile them into a table row.",
            buckets=_COMPILE_BUCKETS,
            registry=registry,
        )
        self._attention_seconds = Histogram(
            "heed_attention_seconds",
            "Attention of one step in all layers, sampled: the stock kernel's part and the edited rows'. "
            "Steps that hold prompt rows count as prompt.",
            ["path", "phase"],
            buckets=_ATTENTION_BUCKETS,
            registry=registry,
        )
        self._sink_mass = Histogram(
            "heed_sink_mass",
            "Attention that edited rows pay to the first token, mean over the heads of a layer, sampled.",
            buckets=_MASS_BUCKETS,
            registry=registry,
        )
        build = Gauge(
            "heed_build_info",
            "Constant 1, with the versions of Heed and vLLM and the backend that carries out edits.",
            ["version", "vllm", "backend"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        build.labels(__version__, installed_vllm() or "unknown", backend).set(1)

    def resolved(self, reports: Sequence[Mapping[str, object]]) -> None:
        """Interventions of one prompt that went to the engine, with their statuses."""
        for report in reports:
            self._requests.labels(_method_label(report["method"]), str(report["status"])).inc()

    def compiled(self, seconds: float) -> None:
        """One list of interventions resolved for a prompt and compiled."""
        self._compile_seconds.observe(seconds)

    def rejected(self, reason: str, methods: Iterable[object] = ()) -> None:
        """One refused request; `methods` are the names it asked for, as far as they are known."""
        self._rejections.labels(reason).inc()
        for method in methods:
            self._requests.labels(_method_label(method), "rejected").inc()

    def salted(self) -> None:
        """One engine request with a salt of Heed's."""
        self._salted.inc()

    def polled(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """What the workers tell when they are asked, one of each engine (`EditsInWorker.heed_gauges`)."""
        self._rows.set(sum(worker["edit_table_rows"] for worker in workers))
        for worker in workers:
            for path, phase, seconds in worker["attention_seconds"]:
                self._attention_seconds.labels(path, phase).observe(seconds)
            for mass in worker["sink_mass"]:
                self._sink_mass.observe(mass)

    def edited(self, method: object, *, prompt: int, generated: int) -> None:
        """Tokens whose rows one engine request computed with an edit of `method`."""
        label = _method_label(method)
        self._edited_tokens.labels(label, "prompt").inc(prompt)
        self._edited_tokens.labels(label, "generation").inc(generated)

    def released(self, method: object, *, tokens: float, blocks: int) -> None:
        """KV memory that one engine request gave back while it ran with `method`; below 0 it took some."""
        label = _method_label(method)
        self._evicted_tokens.labels(label).inc(tokens)
        self._freed_blocks.labels(label).inc(max(blocks, 0))
        self._taken_blocks.labels(label).inc(max(-blocks, 0))


def _method_label(method: object) -> str:
    return method if isinstance(method, str) and method in METHODS else "unknown"
