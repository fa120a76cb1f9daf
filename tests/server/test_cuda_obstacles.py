"""What keeps a CUDA worker from editing, asked of its attention layers before any request comes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.server.cuda_standins import BACKENDS, Stock
from tests.server.fake_kernel import HEAD_DIM
from vllm.model_executor.layers.attention import Attention

from heed_server.engine.running.backend_cuda import obstacles

each_backend = pytest.mark.parametrize("stock", BACKENDS, ids=lambda stock: stock.name)


def obstacle(impl: Any, **changed: Any) -> str | None:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            prefill_context_parallel_size=changed.pop("prefill_context", 1),
            use_ubatching=changed.pop("microbatches", False),
        ),
        model_config=SimpleNamespace(rswa_window=changed.pop("rswa", None)),
        attention_config=SimpleNamespace(use_non_causal=changed.pop("both_ways", False)),
        compilation_config=SimpleNamespace(
            pass_config=SimpleNamespace(fuse_attn_quant=changed.pop("fused", False))
        ),
    )
    attributes = {
        "impl": impl,
        "head_size": HEAD_DIM,
        "dtype": torch.bfloat16,
        "kv_cache_torch_dtype": torch.bfloat16,
        "attn_backend": SimpleNamespace(get_name=lambda: "FLASHINFER"),
    } | changed
    made = Attention.__new__(Attention)
    torch.nn.Module.__init__(made)
    for name, value in attributes.items():
        setattr(made, name, value)
    reasons: list[str] = list(obstacles(config, {0: made}))  # type: ignore[arg-type]
    return reasons[0] if reasons else None


@each_backend
def test_the_wrapped_backends_can_be_edited(stock: Stock) -> None:
    assert obstacle(stock.impl(stock.heed("Impl"))) is None


def test_another_backend_is_named_with_the_flag_that_helps() -> None:
    reason = obstacle(SimpleNamespace(fused_output_quant_supported=lambda key: False))
    assert reason is not None
    assert "FLASHINFER" in reason and "--attention-backend FLASH_ATTN or TRITON_ATTN" in reason


@each_backend
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prefill_context": 2}, "prefill context"),
        ({"microbatches": True}, "dual batch overlap"),
        ({"rswa": 128}, "R-SWA"),
        ({"both_ways": True}, "not causal"),
        ({"head_size": 512}, "512"),
        ({"kv_cache_torch_dtype": torch.float16}, "another type"),
    ],
)
def test_what_cannot_be_edited_on_a_gpu_is_refused_with_its_reason(
    stock: Stock, changed: dict[str, Any], words: str
) -> None:
    reason = obstacle(stock.impl(stock.heed("Impl")), **changed)
    assert reason is not None and words in reason


def test_quantisation_fused_into_attention_is_refused_where_it_happens() -> None:
    flash, triton = (obstacle(s.impl(s.heed("Impl")), fused=True) for s in BACKENDS)
    assert flash is None
    assert triton is not None and "fuse_attn_quant" in triton
