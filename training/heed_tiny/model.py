"""A Llama model for training: parameters named as in Hugging Face, attention as plain matmuls.

`state_dict()` of `Llama` is the state dict of `transformers.LlamaForCausalLM` (tied embeddings),
so an export is a copy. `tests/training/test_export.py` compares the logits of both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int = 2048
    layers: int = 6
    width: int = 192
    query_heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 512
    positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Hugging Face's half-split layout. x: [batch, heads, rows, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, queries, bias=False)
        self.k_proj = nn.Linear(shape.width, keys, bias=False)
        self.v_proj = nn.Linear(shape.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: [batch, rows, width]. Returns the same, and weights [batch, heads, rows, keys]."""
        batch, rows, _ = x.shape
        s = self.shape
        q = self.q_proj(x).view(batch, rows, s.query_heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, rows, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, rows, s.kv_heads, s.head_dim).transpose(1, 2)
        group = s.query_heads // s.kv_heads
        q = rotate(q, cos, sin).to(v.dtype)
        k = rotate(k, cos, sin).to(v.dtype).repeat_interleave(group, dim=1)
        logits = q @ k.transpose(-1, -2) / math.sqrt(s.head_dim) + mask
        weights = logits.softmax(dim=-1)
        mixed = weights.to(v.dtype) @ v.repeat_interleave(group, dim=1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1)), weights


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)


class Llama(nn.Module):
    """Decoder with tied embeddings; `forward` gives logits, `attention` also every weight."""

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(torch.arange(shape.positions), shape.rope_theta**-exponents)
        angles = torch.cat((angles, angles), dim=-1)
        causal = torch.full((shape.positions, shape.positions), -math.inf).triu(1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("mask", causal, persistent=False)

    def attention(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """tokens: [batch, rows]. Logits [batch, rows, vocabulary], weights of every layer."""
        return self.decode(self.model.embed_tokens(tokens))

    def decode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same from embeddings. x: [batch, rows, width]."""
        rows = x.shape[1]
        cos, sin, mask = self.cos[:rows], self.sin[:rows], self.mask[:rows, :rows]
        collected = []
        for layer in self.model.layers:
            x, weights = layer(x, cos, sin, mask)
            collected.append(weights)
        return self.model.norm(x) @ self.model.embed_tokens.weight.T, collected

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens)[0]
