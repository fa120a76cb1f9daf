# ruff: noqa: E741 (l is what papers call it)
"""Plain attention on a GPU, to compare with: vLLM's Triton kernel, a simple one where there is no vLLM, and
PyTorch's FlashAttention."""

import enum
import importlib
import importlib.util
import logging
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl

SEGMENTS = 16
FEWEST_PROGRAMS = 128
"""How vLLM's Triton backend cuts keys of decode steps, and up to how many programs it does so."""


@triton.jit
def plain_kernel(
    query, output, keys, values, block_table, lengths, starts, scale,
    query_token, block_step, token_step, head_step, table_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Causal paged attention without edits: one program per query tile, KV head and request."""
    tile, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + request)
    count = tl.load(starts + request + 1) - first
    length = tl.load(lengths + request)
    if tile * TILE_ROWS < count:
        place = tl.arange(0, ROWS)
        d = tl.arange(0, HEAD_DIM)
        local = tile * TILE_ROWS + place // GROUP
        row = length - count + local
        valid = (local < count) & (place < TILE_ROWS * GROUP)
        heads = head * GROUP + place % GROUP
        at = ((first + local).to(tl.int64) * query_token + heads * HEAD_DIM)[:, None] + d[None, :]
        q = tl.load(query + at, mask=valid[:, None], other=0.0)
        m = tl.full([ROWS], -float("inf"), tl.float32)
        l = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        end = tl.minimum(length, length - count + (tile + 1) * TILE_ROWS)
        blocks = block_table + request * table_row
        for base in range(0, end, TILE):
            k = base + tl.arange(0, TILE)
            block = tl.load(blocks + k // BLOCK_SIZE, mask=k < end, other=0).to(tl.int64)
            place_k = block * block_step + (k % BLOCK_SIZE) * token_step + head * head_step
            kt = tl.load(keys + place_k[None, :] + d[:, None], mask=(k < end)[None, :], other=0.0)
            s = tl.dot(q, kt) * scale
            s = tl.where(k[None, :] <= row[:, None], s, -float("inf"))
            highest = tl.maximum(m, tl.max(s, 1))
            safe = tl.where(highest == -float("inf"), 0.0, highest)
            p = tl.exp2(s - safe[:, None])
            shrink = tl.exp2(m - safe)
            l = l * shrink + tl.sum(p, 1)
            v = tl.load(values + place_k[:, None] + d[None, :], mask=(k < end)[:, None], other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
            m = highest
        acc = acc / tl.where(l > 0, l, 1.0)[:, None]
        tl.store(output + at, acc.to(output.dtype.element_ty), mask=valid[:, None])


def yardstick(batch: Any, carried: str | None = None) -> tuple[str, Callable[[], None]]:
    """Its name, and a call that runs plain attention over a `kernel_batches.Batch`.

    carried: a folder with triton_unified_attention.py and triton_attention_helpers.py of vLLM, where it
    is not installed.
    """
    unified = unified_attention(carried)
    return (
        _plain(batch) if unified is None else ("vLLM unified_attention", _unified(batch, unified))
    )


@cache
def unified_attention(carried: str | None) -> Callable[..., None] | None:
    """vLLM's, or None."""
    name = "vllm.v1.attention.ops.triton_unified_attention"
    try:
        module = importlib.import_module(name) if carried is None else _loaded(Path(carried), name)
    except ModuleNotFoundError:
        return None
    return module.unified_attention  # type: ignore[no-any-return]


def _loaded(folder: Path, name: str) -> ModuleType:
    """vLLM's kernel out of its two files, with as much around it as it imports."""
    parent = name.rpartition(".")[0]
    platform = type(
        "Platform",
        (),
        {
            "fp8_dtype": lambda _: torch.float8_e4m3fn,
            "is_device_capability_family": lambda *_: False,
        },
    )
    names = ("NONE", "INT8_PER_TOKEN_HEAD", "FP8_PER_TOKEN_HEAD", "INT4_PER_TOKEN_HEAD")
    around: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.platforms": {"current_platform": platform()},
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.v1": {}, "vllm.v1.attention": {}, parent: {},
        "vllm.v1.kv_cache_interface": {"KVQuantMode": enum.IntEnum("KVQuantMode", names, start=0)},
    }  # fmt: skip
    for module, attributes in around.items():
        made = sys.modules[module] = ModuleType(module)
        made.__path__ = []
        vars(made).update(attributes)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]  # type: ignore[attr-defined]
    for each in (f"{parent}.triton_attention_helpers", name):
        file = folder / f"{each.rpartition('.')[2]}.py"
        spec = importlib.util.spec_from_file_location(each, file)
        assert spec is not None and spec.loader is not None
        module_of_file = sys.modules[each] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module_of_file)
    return module_of_file


def _unified(batch: Any, unified: Callable[..., None]) -> Callable[[], None]:
    """With the buffers that vLLM's backend gives it for decode steps: there the keys are cut too."""
    shape, query = batch.shape, batch.query
    threshold = FEWEST_PROGRAMS // shape.kv_heads
    cut: dict[str, Any] = {"seq_threshold_3D": threshold, "num_par_softmax_segments": SEGMENTS}
    sizes = threshold, shape.query_heads, SEGMENTS
    options: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    cut["softmax_segm_output"] = torch.empty(
        *sizes, 1 << (shape.head_dim - 1).bit_length(), **options
    )
    cut["softmax_segm_max"] = torch.empty(sizes, **options)
    cut["softmax_segm_expsum"] = torch.empty(sizes, **options)

    def call() -> None:
        unified(
            q=query, k=batch.keys, v=batch.values, out=batch.plain, cu_seqlens_q=batch.starts,
            max_seqlen_q=shape.rows, seqused_k=batch.lengths, max_seqlen_k=shape.context,
            softmax_scale=batch.scale, causal=True, window_size=(-1, -1),
            block_table=batch.block_table, softcap=0, q_descale=None, k_descale=None,
            v_descale=None, **cut,
        )  # fmt: skip

    return call


def _plain(batch: Any) -> tuple[str, Callable[[], None]]:
    shape = batch.shape
    group = shape.query_heads // shape.kv_heads
    tile_rows = max(1, 64 // group) if shape.rows > 1 else 1
    rows = max(16, 1 << (tile_rows * group - 1).bit_length())
    step = batch.keys.stride()
    grid = (-(-shape.rows // tile_rows), shape.kv_heads, shape.requests)

    def call() -> None:
        plain_kernel[grid](
            batch.query, batch.plain, batch.keys, batch.values, batch.block_table, batch.lengths,
            batch.starts, batch.scale * math.log2(math.e), batch.query.stride(0), step[0], step[1],
            step[2], batch.block_table.stride(0),
            GROUP=group, HEAD_DIM=shape.head_dim, BLOCK_SIZE=batch.block_size,
            TILE_ROWS=tile_rows, ROWS=rows, TILE=64, num_warps=4, num_stages=3,
        )  # fmt: skip

    return "plain Triton kernel (no split of the keys)", call


def flash(batch: Any) -> Callable[[], None] | None:
    """FlashAttention as PyTorch has it, of a whole prompt, over keys that are not paged; None for other batches."""
    shape = batch.shape
    if batch.query.device.type != "cuda" or (shape.requests, shape.rows) != (1, shape.context):
        return None
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = batch.query.transpose(0, 1)[None].contiguous()
    size = 1, shape.kv_heads, shape.context, shape.head_dim
    keys, values = (torch.randn(size, dtype=query.dtype, device=query.device) for _ in range(2))

    def call() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(
                query, keys, values, is_causal=True, scale=batch.scale, enable_gqa=True
            )

    return call
