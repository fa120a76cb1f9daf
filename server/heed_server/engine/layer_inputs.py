"""Model seam: the residual stream at the input of each decoder layer, for requests that look at it.

vLLM's decoder layers take the residual stream in two parts, `hidden_states` and `residual`, and add them
in their first norm. A hook before each layer adds them for the step's watchers.
"""

from collections.abc import Mapping
from functools import partial
from inspect import Signature, signature
from typing import Any

from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available

_PARTS = ("hidden_states", "residual")


def inputs_obstacle(config: VllmConfig, model: nn.Module, layers: Mapping[int, Any]) -> str | None:
    """Why hidden states cannot be looked at here; None where they can.

    layers: the attention layers by layer id.
    """
    if config.compilation_config.mode != CompilationMode.NONE:
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


def _before(
    layer: int, name: str, takes: Signature, module: nn.Module, args: Any, kwargs: Any
) -> None:
    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    edited = getattr(metadata.get(name), "edited", None) if isinstance(metadata, dict) else None
    if edited is None or not edited.watchers:
        return
    given = takes.bind(*args, **kwargs).arguments
    states, residual = (given.get(part) for part in _PARTS)
    assert states is not None
    states = states.float() if residual is None else states.float() + residual.float()
    for watcher in edited.watchers:
        watcher.look(layer, states)
    for watcher in edited.watchers:
        watcher.settle(layer)
