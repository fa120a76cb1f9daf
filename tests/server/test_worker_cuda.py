from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.cuda_standins import BACKENDS, act, cache, payload
from tests.server.fake_kernel import HEAD_DIM, HEADS, KV_HEADS, LAYERS, FakeKernel
from vllm.config import CompilationMode
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1
from vllm.v1.worker.mm_encoder_model_runner import MMEncoderModelRunner

from heed_kernels.edits import Rows
from heed_kernels.evict import Evict, NormScore
from heed_server.engine import plugin
from heed_server.engine import worker as worker_parts
from heed_server.engine.messages import EVICTED, EVICTING, FAILED, NOT_KEPT, ORDERS, Event, Orders
from heed_server.engine.model import model_support
from heed_server.engine.plugin import CPU, CUDA, Pieces, pieces_for, put_in_place
from heed_server.engine.running import runner_v1, runner_v2
from heed_server.engine.scheduling.scheduler import HeedAsyncScheduler, HeedScheduler
from heed_server.engine.worker_cuda import HeedCUDAWorker

STOCK_WORKER = "vllm.v1.worker.gpu_worker.Worker"


@pytest.mark.parametrize(
    ("kind", "expected"), [("cpu", CPU), ("cuda", CUDA), ("rocm", None), ("xpu", None)]
)
def test_each_kind_of_device_has_its_own_pieces(kind: str, expected: Pieces | None) -> None:
    platform = SimpleNamespace(is_cpu=lambda: kind == "cpu", is_cuda=lambda: kind == "cuda")
    assert pieces_for(platform) is expected


@pytest.mark.parametrize("pieces", [CPU, CUDA], ids=["cpu", "cuda"])
def test_every_piece_exists_and_subclasses_what_it_takes_the_place_of(pieces: Pieces) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    for stock, heed in pieces.worker.items():
        assert issubclass(resolve_obj_by_qualname(heed), resolve_obj_by_qualname(stock))
    for name, heed in pieces.backends.items():
        stock = AttentionBackendEnum[name].value
        assert issubclass(resolve_obj_by_qualname(heed), resolve_obj_by_qualname(stock))


@pytest.mark.parametrize(
    ("stock", "expected"), [(Scheduler, HeedScheduler), (AsyncScheduler, HeedAsyncScheduler)]
)
def test_worker_and_scheduler_are_replaced_by_subclasses_of_what_vllm_chose(
    stock: type, expected: type
) -> None:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_cls=STOCK_WORKER),
        scheduler_config=SimpleNamespace(scheduler_cls=None, get_scheduler_cls=lambda: stock),
    )
    put_in_place(config, CUDA)
    assert config.parallel_config.worker_cls.endswith("worker_cuda.HeedCUDAWorker")
    assert config.scheduler_config.scheduler_cls.endswith(f".{expected.__name__}")
    assert issubclass(expected, stock)


@pytest.mark.parametrize(("worker", "pieces"), [("my.Worker", CUDA), (STOCK_WORKER, CPU)])
def test_another_worker_stays_with_its_scheduler(worker: str, pieces: Pieces) -> None:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_cls=worker),
        scheduler_config=SimpleNamespace(scheduler_cls=None, get_scheduler_cls=lambda: Scheduler),
    )
    put_in_place(config, pieces)
    assert config.parallel_config.worker_cls == worker
    assert config.scheduler_config.scheduler_cls is None


def test_on_a_gpu_the_two_backends_are_registered_and_the_rest_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.backends import registry

    monkeypatch.setenv("VLLM_PLUGINS", "heed")
    monkeypatch.setattr(plugin, "pieces_for", lambda platform: CUDA)
    monkeypatch.setattr(registry, "_ATTN_OVERRIDES", {})
    monkeypatch.setattr(EngineArgs, "create_engine_config", EngineArgs.create_engine_config)
    plugin.register()
    changed = {name for name in AttentionBackendEnum if name.is_overridden()}
    assert {member.name for member in changed} == {"FLASH_ATTN", "TRITON_ATTN"}
    for stock in BACKENDS:
        member = AttentionBackendEnum[stock.name]
        assert member.get_class() is stock.heed("Backend")
        assert issubclass(member.get_class(), stock.stock("Backend"))


@pytest.mark.parametrize(
    ("v2", "encoder_only", "expected", "mixin"),
    [
        (True, False, RunnerV2, runner_v2.EditsInRunner),
        (False, False, RunnerV1, runner_v1.EditsInRunner),
        (True, True, MMEncoderModelRunner, None),
    ],
)
def test_the_worker_makes_vllms_own_runner_with_edits(
    monkeypatch: pytest.MonkeyPatch, v2: bool, encoder_only: bool, expected: type, mixin: Any
) -> None:
    def remember(self: Any, config: Any, device: torch.device) -> None:
        self.given = config, device

    monkeypatch.setattr(expected, "__init__", remember)
    worker: Any = HeedCUDAWorker.__new__(HeedCUDAWorker)
    worker.use_v2_model_runner = v2
    worker.vllm_config = SimpleNamespace(is_mm_encoder_only=encoder_only)
    worker.device = torch.device("cpu")
    made = worker._make_model_runner()
    assert isinstance(made, expected)
    assert made.given == (worker.vllm_config, worker.device)
    if mixin is None:
        assert not isinstance(made, (runner_v1.EditsInRunner, runner_v2.EditsInRunner))
    else:
        assert type(made).__mro__[1] is mixin


class Loaded:
    """A worker whose stock methods only say that they ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fused: bool = False) -> None:
        self.ran: list[str] = []
        self.kernel = FakeKernel()
        self.kernel.install(monkeypatch)
        for name in ("load_model", "compile_or_warm_up_model"):
            monkeypatch.setattr(gpu_worker.Worker, name, self._stock(name))
        monkeypatch.setattr(model_support, "_tensor_parallel_rank", lambda: 0)
        self.layers = {f"model.layers.{index}.attn": self._layer() for index in range(LAYERS)}
        self.worker: Any = HeedCUDAWorker.__new__(HeedCUDAWorker)
        self.worker.device = torch.device("cpu")
        self.worker.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                get_total_num_kv_heads=lambda: KV_HEADS,
                max_model_len=4096,
                is_mm_prefix_lm=False,
                is_multimodal_model=True,
                is_encoder_decoder=False,
                get_hidden_size=lambda: 64,
                hf_text_config=SimpleNamespace(model_type="llama"),
                use_mla=False,
                rswa_window=None,
            ),
            parallel_config=SimpleNamespace(
                tensor_parallel_size=1,
                pipeline_parallel_size=1,
                decode_context_parallel_size=1,
                prefill_context_parallel_size=1,
                use_ubatching=False,
            ),
            cache_config=SimpleNamespace(cache_dtype="auto"),
            scheduler_config=SimpleNamespace(
                max_num_seqs=5, max_num_batched_tokens=64, max_num_scheduled_tokens=None
            ),
            attention_config=SimpleNamespace(use_non_causal=False),
            compilation_config=SimpleNamespace(
                static_forward_context=self.layers,
                pass_config=SimpleNamespace(fuse_attn_quant=fused),
                mode=CompilationMode.VLLM_COMPILE,
            ),
            speculative_config=None,
            kv_transfer_config=None,
        )
        runner: Any = type("Runner", (runner_v2.EditsInRunner,), {})
        self.runner = runner()
        self.runner.model_state = runner_v2.EditsInModelState()
        self.runner.get_model = torch.nn.Module
        self.worker.model_runner = self.runner

    def _stock(self, name: str) -> Any:
        def run(worker: Any, **_: Any) -> str:
            self.ran.append(name)
            if name == "compile_or_warm_up_model":
                self.ran.append(f"editing: {self.runner.model_state.edited is not None}")
            return name

        return run

    def _layer(self) -> Any:
        made = Attention.__new__(Attention)
        torch.nn.Module.__init__(made)
        made.num_heads, made.num_kv_heads, made.head_size = HEADS, KV_HEADS, HEAD_DIM
        made.dtype = made.kv_cache_torch_dtype = torch.float32
        made.impl = BACKENDS[1].impl(BACKENDS[1].heed("Impl"))
        made.kv_cache = cache()
        return made


def test_tables_are_made_when_the_model_is_loaded_and_used_once_the_kernel_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch)
    worker = loaded.worker
    worker.load_model(load_dummy_weights=False)
    (table,) = loaded.kernel.tables
    assert (table.host.slots, table.host.layers) == (5, LAYERS)
    assert worker._on_device._work.most == (64, 5)
    assert loaded.kernel.reserved == [(HEAD_DIM, torch.float32)] * 4
    assert loaded.runner.model_state.edited is None and not loaded.kernel.warmed

    assert worker.compile_or_warm_up_model() == "compile_or_warm_up_model"
    assert loaded.ran == ["load_model", "compile_or_warm_up_model", "editing: True"]
    ((key_cache, value_cache, dtype, scale, ropes),) = loaded.kernel.warmed
    assert key_cache.shape == value_cache.shape == (8, 16, KV_HEADS, HEAD_DIM)
    assert (dtype, scale, ropes) == (torch.float32, 0.125, [None] * LAYERS)
    for index, layer in enumerate(loaded.layers.values()):
        assert (layer.impl.layer_id, layer.impl.edits) == (index, worker._on_device)
    assert loaded.runner.model_state.edited is worker.edited
    assert loaded.kernel.looked == [("warm", [key_cache.shape, dtype, scale, ropes])]


class Decoder(torch.nn.Module):
    """A decoder layer as vLLM's are."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attn = attention

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> None:
        pass


def test_a_worker_can_look_at_hidden_states_outputs_and_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch)
    layers = torch.nn.ModuleList([Decoder(layer) for layer in loaded.layers.values()])
    model = torch.nn.ModuleDict({"layers": layers})
    loaded.runner.get_model = lambda: model
    for name, layer in loaded.layers.items():
        layer.layer_name = name

    def compile_model(worker: Any) -> None:
        assert not any(part._forward_pre_hooks for part in (model, *layers)), "compiled along"

    monkeypatch.setattr(gpu_worker.Worker, "compile_or_warm_up_model", compile_model)
    worker = loaded.worker
    worker.load_model()
    worker.compile_or_warm_up_model()
    answer, edited = worker.heed_describe(), worker.edited
    assert answer["inputs_obstacle"] is None
    assert edited.flagging is not None and edited.comparing is not None
    assert edited.inspected is not None and edited.class_attention is None
    assert edited.flagging._flags._flags.shape == (LAYERS, 8, 16)
    assert all(len(part._forward_pre_hooks) == 1 for part in (model, *layers))


def test_an_event_moves_keys_in_the_caches_of_the_layers_and_is_told_with_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch)
    monkeypatch.setattr(worker_parts, "get_tp_group", lambda: SimpleNamespace(world_size=1))
    worker = loaded.worker
    worker.load_model()
    worker.compile_or_warm_up_model()
    counts = (5,) * LAYERS
    edit = Evict(NormScore(), None, counts, 5, 1, 2, False, 1, False, Rows(20), 0)
    caches = [layer.kv_cache for layer in loaded.layers.values()]
    for index, pages in enumerate(caches):
        pages.copy_(torch.randn(pages.shape, generator=torch.Generator().manual_seed(index)))
    before = [pages.clone() for pages in caches]

    def execute(worker: Any, scheduler_output: Any) -> None:
        worker.edited.enter("e", payload("r", edit, prompt_length=20), 0)

    def evict(events: dict[str, Event]) -> dict[str, int]:
        blocks = np.array([3, 5], np.int32)
        kept = {
            name: worker.edited.evict(name, event.end, blocks, event.targets)
            for name, event in events.items()
        }
        return {name: most for name, most in kept.items() if most is not None}

    loaded.runner.evict = evict
    monkeypatch.setattr(gpu_worker.Worker, "execute_model", execute)
    monkeypatch.setattr(gpu_worker.Worker, "sample_tokens", lambda *_: Later())
    worker.execute_model(SimpleNamespace(**{EVICTING: {"e": Event(20, [7])}}))
    assert vars(worker.sample_tokens(None).get_output()) == {EVICTED: {"e": 5}}
    for pages, old in zip(caches, before, strict=True):
        held = torch.cat([old[3], old[5]], dim=1)[:, :20]  # [kv_heads, tokens, both halves]
        norms = held[..., :HEAD_DIM].double().norm(dim=2)
        for head in range(KV_HEADS):
            smallest = norms[head, 1:18].argsort()[:2] + 1
            survivors = [0, *sorted(smallest.tolist()), 18, 19]
            assert torch.equal(pages[7, head, :5], held[head, survivors])
        pages[7] = old[7]
        assert torch.equal(pages, old)
    assert loaded.kernel.looked[-1] == ("moved", [0])
    assert worker.edited.table.evicted_end[0] == 20


class Later(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An answer that is made when it is asked for, as V2's and the asynchronous one of V1."""

    def get_output(self) -> Any:
        return SimpleNamespace()


@pytest.mark.parametrize("later", [True, False])
def test_what_a_step_could_not_do_is_told_with_its_answer(
    monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    loaded = Loaded(monkeypatch)
    worker = loaded.worker
    worker.load_model()
    worker.compile_or_warm_up_model()

    def execute(worker: Any, scheduler_output: Any) -> None:
        # It begins behind rows of which nothing is kept.
        worker.edited.enter("e", payload("r", *act({0}, ahead=False)), 4)

    def sample(worker: Any, grammar_output: Any) -> Any:
        return Later() if later else SimpleNamespace()

    monkeypatch.setattr(gpu_worker.Worker, "execute_model", execute)
    monkeypatch.setattr(gpu_worker.Worker, "sample_tokens", sample)
    worker.execute_model(SimpleNamespace(**{ORDERS: Orders(keep={"e": "key"})}))
    answer = worker.sample_tokens(None)
    if later:
        assert not vars(answer).keys() & {FAILED, NOT_KEPT}
        answer = answer.get_output()
    assert vars(answer) == {FAILED: ["e"], NOT_KEPT: ["key"]}
    monkeypatch.setattr(gpu_worker.Worker, "execute_model", lambda *_: None)
    worker.execute_model(SimpleNamespace())
    answer = worker.sample_tokens(None)
    assert not vars(answer.get_output() if later else answer)


def test_the_worker_describes_the_length_that_vllm_fitted_to_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Loaded(monkeypatch).worker
    worker.load_model()
    worker.vllm_config.model_config.max_model_len = 1000
    answer = worker.heed_describe()
    assert (answer["max_length"], answer["backend"], answer["unsupported"]) == (1000, "cuda", None)
    assert answer["longest_step"] == 64
    assert (answer["query_heads"], answer["local_query_heads"]) == (HEADS, HEADS)
    nothing = {"edit_table_rows": 0, "attention_seconds": [], "sink_mass": []}
    assert worker.heed_gauges() == nothing and worker.heed_reports(["x"]) == {}


def test_a_device_that_cannot_run_the_kernel_still_serves_plain_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch)
    worker = loaded.worker
    worker.load_model()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such architecture")

    monkeypatch.setattr(worker._on_device, "_warm_up", fail)
    worker.compile_or_warm_up_model()
    assert loaded.ran == ["load_model", "compile_or_warm_up_model", "editing: False"]
    assert "no such architecture" in worker.heed_describe()["unsupported"]
    assert all(layer.impl.edits is None for layer in loaded.layers.values())
    assert worker.edited is None


def test_a_model_that_cannot_be_edited_gets_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(monkeypatch, fused=True)
    loaded.worker.load_model()
    loaded.worker.compile_or_warm_up_model()
    assert "fuse_attn_quant" in loaded.worker.heed_describe()["unsupported"]
    assert not loaded.kernel.tables and loaded.ran[-1] == "editing: False"
