"""Model seam: the residual stream at the input of each decoder layer, for requests that look at it.

vLLM's decoder layers take the residual stream in two parts, `hidden_states` and `residual`, and add them
in their first norm. A hook before each layer adds them for the step's watchers. Hooks do not run in a
compiled model: on GPUs a step that has watchers is computed by the model's own code instead, as vLLM
itself does where a step cannot be compiled (`ForwardContext.skip_compiled`). On the CPU such a model is
refused, because plain neighbours of such a step would not keep their bits.
"""

from collections.abc import Mapping
from functools import partial
from inspect import Signature, signature
from typing import Any

import torch
from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available

_PARTS = ("hidden_states", "residual")


def inputs_obstacle(
    config: VllmConfig, model: nn.Module, layers: Mapping[int, Any], *, uncompiled_steps: bool
) -> str | None:
    """Why hidden states cannot be looked at here; None where they can.

    layers: the attention layers by layer id. uncompiled_steps: whether single steps may leave the compiled
    code, see `leave_compiled_code`.
    """
    if not config.model_config.is_multimodal_model:
        # Hooks cost plain steps a little, and only methods for images look at hidden states.
        return "hidden states are looked at in models that take images alone"
    if config.compilation_config.mode != CompilationMode.NONE and not uncompiled_steps:
        return "hidden states cannot be read in a compiled model: start with --enforce-eager"
    decoders = decoder_layers(model, layers)
    if len(decoders) < len(layers):
        return "the model's decoder layers were not found"
    for layer in decoders.values():
        if not set(_PARTS) <= set(signature(layer.forward).parameters):
            return f"{type(layer).__name__} does not take the residual stream in two parts"
    return None


def decoder_layers(model: nn.Module, layers: Mapping[int, Any]) -> dict[int, nn.Module]:
    """The modules around attention layers whose names end in the layer's id, by that."""
    names = {id(module): name.split(".") for name, module in model.named_modules()}
    found: dict[int, nn.Module] = {}
    for index, layer in layers.items():
        path = names.get(id(layer), [])
        if str(index) in path:
            end = path.index(str(index)) + 1
            found[index] = model.get_submodule(".".join(path[:end]))
    return found


def watch_inputs(model: nn.Module, layers: Mapping[int, Any]) -> None:
    """Hand each layer's input to the watchers of the step that runs."""
    for index, decoder in decoder_layers(model, layers).items():
        hook = partial(_before, index, layers[index].layer_name, signature(decoder.forward))
        decoder.register_forward_pre_hook(hook, with_kwargs=True)


def leave_compiled_code(model: nn.Module, layers: Mapping[int, Any]) -> None:
    """Compute steps that have watchers by the code of the layers, and not by what was compiled of it.

    model: the outermost module, which is not compiled itself.
    """
    name = next(iter(layers.values())).layer_name

    def before(module: nn.Module, args: Any) -> None:
        if _watched(name) is not None:
            get_forward_context().skip_compiled = True

    model.register_forward_pre_hook(before)


def _watched(name: str) -> Any:
    """The metadata of the attention layer `name` in a step that has watchers; None in any other."""
    known = get_forward_context().attn_metadata if is_forward_context_available() else None
    metadata = known.get(name) if isinstance(known, dict) else None
    edited = getattr(metadata, "edited", None)
    return metadata if edited is not None and edited.watchers else None


def _before(
    layer: int, name: str, takes: Signature, module: nn.Module, args: Any, kwargs: Any
) -> None:
    metadata = _watched(name)
    if metadata is None:
        return
    given = takes.bind(*args, **kwargs).arguments
    watchers, table = metadata.edited.watchers, metadata.block_table
    for watcher in watchers:
        watcher.look(layer, _stream(given, watcher.tokens), table)
    for watcher in watchers:
        watcher.settle(layer, table)


def _stream(given: Mapping[str, Any], tokens: slice) -> torch.Tensor:
    """float32 [tokens, hidden_size]: the residual stream of some tokens of the batch."""
    states, residual = (given.get(part) for part in _PARTS)
    assert states is not None
    stream: torch.Tensor = states[tokens].float()
    return stream if residual is None else stream + residual[tokens].float()
