"""What edited attention means, by Hugging Face transformers: float32, one request, no cache.

This file shares no code with Heed. Everything of the model but its attention is transformers' own;
the attention of each layer is written out here over dense `[heads, rows, keys]` arrays, one
sequence at a time, and every edit is taken from its formula. Nothing is cached: each call computes
all rows of the sequence again, so the edit of a row can only depend on its absolute position, on
the number of prompt tokens, and on the edits themselves.

Order of composition:

    logits    q . k / sqrt(d) after RoPE, times factors              (attention_scale, vaf, avar, adaptvis)
              plus a share of their magnitudes                       (pai)
    visible   keys outside sinks and window do not exist             (streaming_llm)
              keys that were evicted before the row do not exist     (eviction_definition.py)
    weights   softmax, times the factors of the edits, renormalised  (zerotuning, emphasis, locore)
              moved from sinks to the rest, see `act_reference`      (act)
              moved from sinks to the rest of the image              (var)
    output    sum of weights and values, times `gain`                (head_gain)
              times factors by comparison of heads                   (vhr, spin)
              made anew of other weights in chosen heads             (gift)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import act_reference
import eviction_definition
import torch
import vision_definition
from act_reference import Disagreement
from eviction_events import Eviction, Observed, adopted, ends, evicted, held_at
from reference_parameters import with_defaults
from reference_results import Pass, Result
from reference_scopes import heads_in_layer, row_mask
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from vision_definition import Images

Intervention = Mapping[str, Any]


def generate(
    model_dir: str | Path,
    prompt_token_ids: Sequence[int],
    interventions: Sequence[Intervention] = (),
    max_tokens: int = 16,
    forced_tokens: Sequence[int] | None = None,
    block_size: int = 0,
) -> Result:
    """Decode greedily, or score `forced_tokens`, under `interventions` (spans as start and end).

    block_size: of the cache; methods that evict in decode do so whenever a block is full.
    """
    reference = load(str(model_dir))
    return reference.generate(
        prompt_token_ids, interventions, max_tokens, forced_tokens, block_size=block_size
    )


@lru_cache(maxsize=4)
def load(model_dir: str) -> Reference:
    """The model of a directory, read once."""
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return Reference(model)


class Reference:
    """A model of the Llama or Qwen2 family whose attention can be edited."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()

    @property
    def decoder(self) -> Any:
        """The module that has the decoder's layers."""
        return self.model.model

    def inputs(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": torch.tensor([list(tokens)])}

    def images(self, tokens: Sequence[int]) -> Images:
        """Where images lie in `tokens`."""
        return Images.of(torch.zeros(len(tokens), dtype=torch.bool))

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        interventions: Sequence[Intervention] = (),
        max_tokens: int = 16,
        forced_tokens: Sequence[int] | None = None,
        top: int = 5,
        block_size: int = 0,
    ) -> Result:
        prompt = list(prompt_token_ids)
        if forced_tokens is None:
            tokens: list[int] = []
            for _ in range(max_tokens):
                ran = self.run(prompt + tokens, len(prompt), interventions, block_size)
                tokens.append(int(ran.logprobs[-1].argmax()))
        else:
            tokens = list(forced_tokens)
        # The last token is sampled and never becomes a row, so it stays out of the pass.
        rows_of = (prompt + tokens)[:-1] or prompt
        last = self.run(rows_of, len(prompt), interventions, block_size)
        logprobs = last.logprobs
        rows = logprobs[len(prompt) - 1 :][: len(tokens)]
        best = rows.max(dim=-1)
        leaders = rows.topk(top, dim=-1)
        return Result(
            tokens=tokens,
            token_logprobs=[float(row[token]) for row, token in zip(rows, tokens, strict=True)],
            best_tokens=best.indices.tolist(),
            best_logprobs=best.values.tolist(),
            prompt_logprobs=[None]
            + [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])],
            top=[
                list(zip(ids, values, strict=True))
                for ids, values in zip(
                    leaders.indices.tolist(), leaders.values.tolist(), strict=True
                )
            ],
            disagreements=last.disagreements,
            evictions=last.evictions,
        )

    def run(
        self,
        tokens: Sequence[int],
        prompt_length: int,
        interventions: Sequence[Intervention] = (),
        block_size: int = 0,
        evictions: Sequence[Eviction] = (),
    ) -> Pass:
        """All rows of `tokens`, of which the first `prompt_length` are the prompt.

        evictions: what was evicted, where no intervention is to decide that.
        """
        filled = [with_defaults(intervention) for intervention in interventions]
        for edit in filled:
            if edit.get("mode") == "companion":
                edit["companion"] = self.last_outputs(self.without_images(tokens[:prompt_length]))
            if edit["method"] in eviction_definition.PARAMETERS:
                evictions = self._evictions(edit, filled, tokens, prompt_length, block_size)
        logits, attentions = self._pass(tokens, prompt_length, filled, evictions)
        return Pass(
            logits.log_softmax(-1),
            [attention.weights for attention in attentions],
            [each for attention in attentions for each in attention.disagreements],
            evictions,
        )

    def without_images(self, tokens: Sequence[int]) -> list[int]:
        """`tokens` but for those that stand for images."""
        visual = self.images(tokens).visual.tolist()
        return [token for token, gone in zip(tokens, visual, strict=True) if not gone]

    def last_outputs(self, tokens: Sequence[int]) -> list[Tensor]:
        """By layer, head outputs [heads, head_dim] of the last row of the plain prompt `tokens`."""
        return [each.output[:, -1] for each in self._pass(tokens, len(tokens), [], ())[1]]

    def observe(self, tokens: Sequence[int]) -> Observed:
        """What the methods that evict look at, after the plain prompt `tokens`."""
        return Observed.of(self._pass(tokens, len(tokens), [], ())[1])

    def _evictions(
        self,
        edit: dict[str, Any],
        interventions: list[dict[str, Any]],
        tokens: Sequence[int],
        prompt_length: int,
        block_size: int,
    ) -> list[Eviction]:
        """What is evicted, one eviction after another: each is decided under those before it."""
        evictions: list[Eviction] = []
        for end in ends(edit, prompt_length, len(tokens), block_size):
            _, attentions = self._pass(tokens[:end], prompt_length, interventions, evictions)
            seen, held = Observed.of(attentions), held_at(end, evictions)
            choice = eviction_definition.choose(
                edit, seen.layers, held, prompt_length, end, seen.mean_rotation
            )
            if choice is not None:
                told, anywhere = edit.get("kept"), edit.get("kept_anywhere", False)
                evictions = [*evictions, adopted(end, choice, told, anywhere=anywhere)]
        return evictions

    @torch.no_grad()
    def _pass(
        self,
        tokens: Sequence[int],
        prompt_length: int,
        interventions: list[dict[str, Any]],
        evictions: Sequence[Eviction],
    ) -> tuple[Tensor, list[EditedAttention]]:
        images = self.images(tokens)
        with self._edited(interventions, prompt_length, evictions, images) as attentions:
            logits = self.model(**self.inputs(tokens), use_cache=False).logits[0]
        return logits, attentions

    @contextmanager
    def _edited(
        self,
        interventions: list[dict[str, Any]],
        prompt_length: int,
        evictions: Sequence[Eviction],
        images: Images,
    ) -> Iterator[list[EditedAttention]]:
        decoder = self.decoder
        attentions = [
            EditedAttention(
                layer.self_attn, index, decoder, interventions, prompt_length, evictions, images
            )
            for index, layer in enumerate(decoder.layers)
        ]
        hooks = []
        for attention, layer in zip(attentions, decoder.layers, strict=True):
            attention.module.forward = attention
            hooks.append(layer.register_forward_pre_hook(attention.enter_layer))
        try:
            yield attentions
        finally:
            for attention, hook in zip(attentions, hooks, strict=True):
                del attention.module.forward
                hook.remove()


class EditedAttention:
    """One layer's attention over one sequence. Takes the place of the module's `forward`."""

    weights: Tensor
    output: Tensor
    disagreements: Sequence[Disagreement] = ()
    layer_input: Tensor

    def __init__(
        self,
        module: Any,
        layer: int,
        decoder: Any,
        interventions: list[dict[str, Any]],
        prompt_length: int,
        evictions: Sequence[Eviction],
        images: Images,
    ) -> None:
        if getattr(module, "sliding_window", None) is not None:
            raise NotImplementedError("a layer with a sliding window of its own")
        self.module, self.layer = module, layer
        self.rotary = decoder.rotary_emb
        self.head_count = decoder.config.num_attention_heads
        self.prompt_length, self.images = prompt_length, images
        self.group = self.head_count // decoder.config.num_key_value_heads
        self.gone = partial(evicted, evictions, layer, self.head_count)
        self.gifts = [edit for edit in interventions if edit["method"] == "gift"]
        self.edits = [
            (intervention, heads)
            for intervention in interventions
            if (heads := heads_in_layer(intervention, layer, decoder.config))
        ]

    def enter_layer(self, layer: Any, given: tuple[Tensor, ...]) -> None:
        """Before the layer that this is the attention of."""
        self.layer_input = given[0][0]

    def __call__(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        query, key, value = self.states = self.project(hidden_states[0])
        rows, prompt_length = query.shape[1], self.prompt_length
        raw = self.logits(query, key)
        logits = self.scaled(raw)
        visible = self.visible(rows) & ~self.gone(rows)
        logits = logits.masked_fill(~visible, float("-inf"))
        weights = logits.softmax(-1) * self.factors(rows)
        weights = self.observed = weights / weights.sum(-1, keepdim=True)
        for edit, heads in self.chosen("act"):
            weights, self.disagreements = act_reference.calibrated(
                weights, edit, heads, self.layer, prompt_length
            )
        for edit, heads in self.chosen("var"):
            weights = vision_definition.redistributed(
                weights, edit, heads, self.images, self.layer_input, prompt_length
            )
        output = weights @ value  # [heads, rows, head_dim]
        for edit, heads in self.chosen("head_gain"):
            gain = torch.where(self.row_mask(edit["rows"], rows), edit["gain"], 1.0)
            output[heads] *= gain[:, None]
        for edit, _ in self.chosen("vhr"):
            output = vision_definition.reinforced(
                output, edit, self.images, self.observed, value, self.layer, prompt_length
            )
        for edit, _ in self.chosen("spin"):
            output = vision_definition.suppressed(output, edit, self.images, raw, prompt_length)
        for edit in self.gifts:
            if self.layer == edit["saliency_layer"]:
                edit["salient"] = vision_definition.saliency(
                    edit, self.images, self.observed, prompt_length
                )
        for edit, _ in self.chosen("gift"):
            output = vision_definition.shifted(
                output, edit, self.images, self.observed, value, edit["salient"], prompt_length
            )
        self.weights, self.output = weights, output
        output = self.module.o_proj(output.transpose(0, 1).reshape(rows, -1))
        return output[None], weights[None]

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both before RoPE) and values, `[query_heads, rows, head_dim]` each."""
        module, width = self.module, self.module.head_dim
        query = module.q_proj(hidden).unflatten(-1, (-1, width))
        key = module.k_proj(hidden).unflatten(-1, (-1, width))
        value = module.v_proj(hidden).unflatten(-1, (-1, width))
        if hasattr(module, "q_norm"):  # Qwen3 normalises each head
            query, key = module.q_norm(query), module.k_norm(key)
        group = self.head_count // key.shape[1]
        key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Dot products after RoPE over sqrt(d), `[heads, rows, keys]`, before any mask."""
        rows = query.shape[1]
        positions = torch.arange(rows)
        scaling = self.module.scaling
        logits = self.rotate(query, positions) @ self.rotate(key, positions).mT * scaling
        streaming = [edit for edit, _ in self.chosen("streaming_llm")]
        if streaming and streaming[0]["positions"] == "rolling":
            visible = self.visible(rows)
            # Where nothing is hidden the whole product above says it already. All other rows see as
            # many keys, sinks and window; a few rows at a time, because each rotates its own.
            count = visible.sum(-1)
            # The i-th visible key stands at position i and the query at the last of them.
            new = torch.arange(int(count[-1]))
            for part in (count <= positions).nonzero()[:, 0].split(32):
                seen = visible[part].nonzero()[:, 1].view(len(part), len(new))
                row_query = self.rotate(query[:, part], new[-1:])[:, :, None]
                row_keys = self.rotate(key[:, seen], new)  # [heads, rows, seen, head_dim]
                logits[:, part[:, None], seen] = (row_query @ row_keys.mT)[:, :, 0] * scaling
        return logits

    def scaled(self, logits: Tensor) -> Tensor:
        """The logits after all factors, and shares of their magnitudes as they were before."""
        factor, absolute = torch.ones_like(logits), torch.zeros_like(logits)
        for edit, heads in self.chosen("attention_scale"):
            factor[heads] *= edit["q_scale"]
        for method in vision_definition.PARAMETERS:
            for edit, heads in self.chosen(method):
                both = vision_definition.scales(edit, self.images, self.prompt_length)
                factor[heads] *= both[0]
                absolute[heads] += both[1]
        return factor * logits + absolute * logits.abs()

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """RoPE of `[heads, n, head_dim]` at `positions` `[n]`, by the model's own angles."""
        cos, sin = self.rotary(states, position_ids=positions[None])
        first, second = states.chunk(2, dim=-1)
        return states * cos[0] + torch.cat((-second, first), dim=-1) * sin[0]

    def visible(self, rows: int) -> Tensor:
        """`[rows, keys]`: a row sees the keys up to its own, and of those sinks and window only."""
        row, key = torch.arange(rows)[:, None], torch.arange(rows)[None]
        visible = key <= row
        for edit, _ in self.chosen("streaming_llm"):
            visible &= (key < edit["sinks"]) | (key > row - edit["window"])
        return visible

    def factors(self, rows: int) -> Tensor:
        """What the softmax weights are multiplied by, `[heads, rows, keys]`."""
        row, key = torch.arange(rows)[:, None], torch.arange(rows)[None]
        prompt_length = self.prompt_length
        factors = torch.ones(self.head_count, rows, rows)
        for edit, heads in self.chosen("zerotuning"):
            factors[heads] *= torch.where(key == edit["position"], edit["gamma"], 1.0)
        for edit, heads in self.chosen("emphasis"):
            spared = key >= prompt_length  # generated keys keep weight 1
            for span in edit["spans"]:
                spared = spared | ((key >= span["start"]) & (key < span["end"]))
            for position in edit["protect_positions"]:
                spared = spared | (key == position)
            edited = ~spared & self.row_mask(edit["rows"], rows)[:, None]
            factors[heads] *= torch.where(edited, edit["alpha"], 1.0)
        for edit, heads in self.chosen("locore"):
            first = self.images.end if edit["include_prompt_tail"] else prompt_length
            start = (row - edit["window"]).clamp(min=first)
            edited = (row >= prompt_length) & (key >= start) & (key < row)
            factors[heads] *= torch.where(edited, 1.0 + edit["beta"], 1.0)
        return factors

    def row_mask(self, rows: str, count: int) -> Tensor:
        """`[count]`: which rows are in scope."""
        return row_mask(rows, count, self.prompt_length, self.images.end)

    def chosen(self, method: str) -> list[tuple[dict[str, Any], list[int]]]:
        return [(edit, heads) for edit, heads in self.edits if edit["method"] == method]
