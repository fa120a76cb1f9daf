"""The reference itself: it must be plain where nothing is asked, and right where much is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference_results import Pass
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers_reference import Reference

LENGTHS = [1, 2, 17, 40]
PROMPT = 12


def tiny_model(layers: int = 3, family: str = "llama") -> Reference:
    """Random weights, six query heads on two KV heads, attention far from uniform."""
    torch.manual_seed(7)
    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "attn_implementation": "eager",
    }
    if family == "qwen2":
        return Reference(Qwen2ForCausalLM(Qwen2Config(**shape)))
    return Reference(LlamaForCausalLM(LlamaConfig(**shape)))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_model()


def tokens(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 97, (length,), generator=generator).tolist()


def distance(one: Pass, other: Pass) -> float:
    return float((one.logprobs - other.logprobs).abs().max())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("length", LENGTHS)
def test_without_interventions_the_reference_is_plain_transformers(
    family: str, length: int
) -> None:
    reference = tiny_model(family=family)
    ids = tokens(length)
    with torch.no_grad():
        expected = reference.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert float((reference.run(ids, length).logprobs - expected).abs().max()) < 2e-5


def test_greedy_generation_is_what_transformers_generates(reference: Reference) -> None:
    prompt = tokens(PROMPT)
    output = reference.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, PROMPT, dtype=torch.long),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = output[0, PROMPT:].tolist()
    result = reference.generate(prompt, max_tokens=10)
    assert result.tokens == expected
    assert result.best_tokens == expected


def test_forced_tokens_are_scored_as_if_they_had_been_generated(reference: Reference) -> None:
    edits = [{"method": "locore", "beta": 0.9, "window": 2}, {"method": "zerotuning", "gamma": 4}]
    greedy = reference.generate(tokens(PROMPT), edits, max_tokens=6)
    forced = reference.generate(tokens(PROMPT), edits, forced_tokens=greedy.tokens)
    assert forced == greedy
    other = reference.generate(tokens(PROMPT), edits, forced_tokens=[5, 6, 7])
    assert other.best_tokens[0] == greedy.tokens[0]
    assert other.best_logprobs[0] > other.token_logprobs[0]


NEUTRAL: list[dict[str, Any]] = [
    {"method": "zerotuning", "gamma": 1},
    {"method": "head_gain", "gain": 1},
    {"method": "attention_scale", "q_scale": 1},
    {"method": "emphasis", "alpha": 1, "spans": [{"start": 2, "end": 5}]},
    {"method": "emphasis", "alpha": 0.1, "spans": [{"start": 0, "end": PROMPT}]},
    {"method": "locore", "beta": 0},
    {"method": "streaming_llm", "window": 40, "sinks": 0},
    {"method": "streaming_llm", "window": 36, "sinks": 4},
    {"method": "streaming_llm", "window": 40, "positions": "original"},
    {"method": "zerotuning", "gamma": 3, "layers": [], "heads": "all"},
    {"method": "head_gain", "gain": 3, "heads": {"1": []}},
]


@pytest.mark.parametrize("edit", NEUTRAL, ids=str)
def test_neutral_parameters_change_nothing(reference: Reference, edit: dict[str, Any]) -> None:
    ids = tokens(40)
    assert distance(reference.run(ids, PROMPT, [edit]), reference.run(ids, PROMPT)) < 2e-5


EDITS: list[dict[str, Any]] = [
    {"method": "zerotuning", "gamma": 3.0},
    {"method": "zerotuning", "gamma": 0.2, "position": 5, "layers": [0, -1], "heads": [1, 4]},
    {"method": "head_gain", "gain": -1.5, "rows": "generated"},
    {"method": "attention_scale", "q_scale": 0.5, "heads": {"0": [0], "-1": [2, 3]}},
    {"method": "emphasis", "spans": [{"start": 2, "end": 5}, {"start": 4, "end": 7}]},
    {"method": "locore", "beta": 0.8, "window": 3},
    {"method": "streaming_llm", "sinks": 2, "window": 7},
    {"method": "streaming_llm", "sinks": 0, "window": 5, "positions": "original"},
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_edited_rows_still_sum_to_one_and_look_only_back(
    reference: Reference, edit: dict[str, Any]
) -> None:
    edited, plain = (reference.run(tokens(40), PROMPT, e) for e in ([edit], []))
    assert distance(edited, plain) > 1e-3
    for weights in edited.weights:
        assert torch.allclose(weights.sum(-1), torch.ones(6, 40), atol=1e-5)
        assert float(weights.triu(1).abs().max()) == 0


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_row_does_not_change_when_more_rows_follow(
    reference: Reference, edit: dict[str, Any]
) -> None:
    ids = tokens(40)
    whole, part = reference.run(ids, PROMPT, [edit]), reference.run(ids[:21], PROMPT, [edit])
    assert float((whole.logprobs[:21] - part.logprobs).abs().max()) < 2e-5


@pytest.mark.parametrize("edit", EDITS[2:3] + EDITS[5:6], ids=str)
def test_edits_of_generated_rows_leave_the_prompt_alone(
    reference: Reference, edit: dict[str, Any]
) -> None:
    edited, plain = (reference.run(tokens(40), PROMPT, e) for e in ([edit], []))
    changed = (edited.logprobs - plain.logprobs).abs().amax(-1)
    assert float(changed[:PROMPT].max()) == 0
    # The first generated row has no generated key before its own, so LocoRE starts one later.
    first = PROMPT + (1 if edit["method"] == "locore" else 0)
    assert float(changed[PROMPT:first].sum()) == 0
    assert float(changed[first:].min()) > 0


def first_layer(reference: Reference, edit: dict[str, Any] | None) -> torch.Tensor:
    """Weights of layer 0, the one whose input no edit has touched, `[heads, rows, keys]`."""
    return reference.run(tokens(40), PROMPT, [edit] if edit else []).weights[0]


def test_zerotuning_is_the_formula_of_the_paper(reference: Reference) -> None:
    plain = first_layer(reference, None)
    edited = first_layer(reference, {"method": "zerotuning", "gamma": 2.5, "heads": [1]})
    denominator = 1 + 1.5 * plain[1, :, 0]
    assert torch.allclose(edited[1, :, 0], 2.5 * plain[1, :, 0] / denominator, atol=1e-6)
    assert torch.allclose(edited[1, :, 1:], plain[1, :, 1:] / denominator[:, None], atol=1e-6)
    assert torch.equal(edited[0], plain[0])


def test_emphasis_weakens_prompt_keys_outside_the_union_of_spans_and_no_others(
    reference: Reference,
) -> None:
    spans = [{"start": 2, "end": 5}, {"start": 4, "end": 7}]
    plain = first_layer(reference, None)
    edited = first_layer(reference, {"method": "emphasis", "alpha": 0.25, "spans": spans})
    ratio = (edited / plain)[:, 30]  # [heads, keys], up to a factor per head
    ratio = ratio / ratio[:, 2:3]
    spared = [0, *range(2, 7), *range(PROMPT, 31)]
    weakened = [1, *range(7, PROMPT)]
    assert torch.allclose(ratio[:, spared], torch.tensor(1.0), atol=1e-4)
    assert torch.allclose(ratio[:, weakened], torch.tensor(0.25), atol=1e-4)


def test_locore_strengthens_the_generated_keys_before_a_row_and_not_its_own(
    reference: Reference,
) -> None:
    plain = first_layer(reference, None)
    edited = first_layer(reference, {"method": "locore", "beta": 0.5, "window": 3})
    for row, strengthened in [(12, []), (13, [12]), (14, [12, 13]), (30, [27, 28, 29])]:
        expected = torch.ones(row + 1)
        expected[strengthened] = 1.5
        ratio = (edited / plain)[:, row, : row + 1]
        assert torch.allclose(ratio / ratio[:, row:], expected.expand(6, -1), atol=1e-4)


def test_a_query_scale_of_zero_makes_rows_uniform(reference: Reference) -> None:
    weights = first_layer(reference, {"method": "attention_scale", "q_scale": 0, "heads": [3]})
    uniform = torch.ones(40, 40).tril() / torch.arange(1, 41)[:, None]
    assert torch.allclose(weights[3], uniform, atol=1e-6)


def test_a_head_gain_of_zero_removes_the_heads_slice_of_the_output_projection(
    reference: Reference,
) -> None:
    ids = tokens(20)
    edited = reference.run(ids, PROMPT, [{"method": "head_gain", "gain": 0, "heads": {"1": [2]}}])
    without = tiny_model()
    with torch.no_grad():
        without.model.model.layers[1].self_attn.o_proj.weight[:, 16:24] = 0
    assert distance(edited, without.run(ids, PROMPT)) < 2e-5


@pytest.mark.parametrize(("sinks", "window"), [(0, 5), (4, 6), (9, 1)])
def test_in_one_layer_rolling_is_the_plain_model_on_the_truncated_tokens(
    sinks: int, window: int
) -> None:
    """The keys of a first layer know their token only, so truncating says it all."""
    reference = tiny_model(layers=1)
    ids = tokens(40)
    edit = {"method": "streaming_llm", "sinks": sinks, "window": window}
    edited = reference.run(ids, PROMPT, [edit]).logprobs
    for row in (3, 10, 25, 39):
        kept = [*range(min(sinks, row + 1)), *range(max(sinks, row - window + 1), row + 1)]
        truncated = reference.run([ids[key] for key in kept], PROMPT).logprobs[-1]
        assert float((edited[row] - truncated).abs().max()) < 2e-5


@pytest.mark.parametrize(("sinks", "window"), [(4, 6), (0, 5)])
def test_rolling_is_a_cache_that_drops_its_middle_and_counts_anew(
    reference: Reference, sinks: int, window: int
) -> None:
    """StreamingLLM as released: token by token, keys cached before RoPE, positions in the cache."""
    model = reference.model.model
    cache: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in model.layers]
    streamed = []
    with torch.no_grad():
        for token in tokens(30):
            hidden = model.embed_tokens(torch.tensor([[token]]))
            for layer, kept in zip(model.layers, cache, strict=True):
                hidden = hidden + streaming_step(
                    layer.self_attn, model.rotary_emb, layer.input_layernorm(hidden), kept
                )
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
                if len(kept) == sinks + window:  # full: make room for the next token
                    del kept[sinks]
            logits = reference.model.lm_head(model.norm(hidden))
            streamed.append(logits[0, 0].log_softmax(-1))
    edit = {"method": "streaming_llm", "sinks": sinks, "window": window}
    edited = reference.run(tokens(30), PROMPT, [edit]).logprobs
    assert float((edited - torch.stack(streamed)).abs().max()) < 5e-5


def streaming_step(
    attention: Any, rotary: Any, hidden: torch.Tensor, kept: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    split = (1, -1, attention.head_dim)
    query, key, value = (
        projection(hidden).view(split).transpose(0, 1)[None]
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # [1, heads, 1, head_dim]
    kept.append((key, value))
    keys, values = (torch.cat(list(parts), dim=2) for parts in zip(*kept, strict=True))
    cos, sin = rotary(keys, position_ids=torch.arange(len(kept))[None])
    _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
    query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
    output = nn_attention(query, keys, values)
    return attention.o_proj(output.transpose(1, 2).reshape(1, 1, -1))


def nn_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)


@pytest.mark.parametrize("rolling", ["rolling", "original"])
def test_keys_outside_sinks_and_window_weigh_nothing(reference: Reference, rolling: str) -> None:
    edit = {"method": "streaming_llm", "sinks": 2, "window": 5, "positions": rolling}
    weights = first_layer(reference, edit)
    assert (weights[:, 20].amin(0) > 0).nonzero()[:, 0].tolist() == [0, 1, 16, 17, 18, 19, 20]


def test_the_order_of_the_list_does_not_matter(reference: Reference) -> None:
    edits = EDITS[:7]
    one = reference.run(tokens(40), PROMPT, edits)
    other = reference.run(tokens(40), PROMPT, edits[::-1])
    assert distance(one, other) < 1e-4


def test_two_edits_of_one_kind_multiply(reference: Reference) -> None:
    twice = [{"method": "zerotuning", "gamma": 2}, {"method": "zerotuning", "gamma": 1.5}]
    once = [{"method": "zerotuning", "gamma": 3}]
    ids = tokens(40)
    assert distance(reference.run(ids, PROMPT, twice), reference.run(ids, PROMPT, once)) < 2e-5


@pytest.mark.parametrize(
    "edit", [{"method": "zerotuning"}, {"method": "zerotuning", "gamma": 2, "rows": "all"}], ids=str
)
def test_the_reference_refuses_what_it_does_not_know(
    reference: Reference, edit: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        reference.run(tokens(3), 3, [edit])
