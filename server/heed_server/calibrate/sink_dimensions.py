"""`heed calibrate var`: the dimensions of the hidden state in which a model's sinks stand out.

Kang et al., "See What You Are Told", ICLR 2025, arXiv 2503.03321. Position 0 of a prompt is a sink in
every model that has any. With x its hidden state at a layer's input, dimension d stands out where

    phi_d(x) = |x_d| / sqrt(mean of x^2 + 1e-6) > tau

and is kept where it does so in at least half of the layers 2 to L - 2 and prompts. Attention is causal,
so that x depends on the prompt's first token alone: each first token is run once, in transformers, and
counts for all prompts that begin with it. What the dimensions find among the tokens of images is then
looked at on the server, in prompts that have images: more than a tenth of them is a warning.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heed_server.calibrate.errors import CalibrationError
from heed_server.models import bundled_model
from heed_server.profiles.identity import ModelIdentity
from heed_server.profiles.profile import SCHEMA, Profile, ProfileError, is_profile_name
from heed_server.profiles.writing import write_profile
from heed_server.scoring.client import Client
from heed_server.scoring.data import Item, read_items, task_file
from heed_server.scoring.local_server import server_at
from heed_server.version import __version__

EPSILON = 1e-6
FIRST_LAYER = 2
SHARE_OF_LAYERS = 0.5
MOST_OF_AN_IMAGE = 0.1
NAMED = 5
"""Dimensions that a message names where none stands out."""


def calibrate_var(options: argparse.Namespace) -> None:
    """Write a profile of `var` with the model's `sink_dims`, and say what they find in images.

    Raises:
        CalibrationError: no dimension stands out, or data, model or server cannot be used.
    """
    if not is_profile_name(options.name):
        raise CalibrationError(f"{options.name!r} is no name of a profile")
    items = read_items(options.data or task_file(options.task))[: options.limit]
    # `var` reads hidden states, which a compiled model does not give out.
    with server_at(options.url, options.model, ["--enforce-eager"]) as url:
        profile, said = asyncio.run(_run(options, url, items))
    try:
        path = write_profile(options.out, profile, replace=options.replace)
    except ProfileError as error:
        raise CalibrationError(str(error)) from error
    sys.stdout.write(f"{said}\nparameters: {profile.parameters}\nwritten to {path}\n")


async def _run(options: argparse.Namespace, url: str, items: Sequence[Item]) -> tuple[Profile, str]:
    async with Client(url, options.api_key, options.in_flight) as client:
        model, _ = await client.served()
        prompts = await asyncio.gather(*(client.tokens(_body(item)) for item in items))
        first = Counter(tokens[0] for tokens in prompts)
        phi = magnitudes(hidden_states(options.model, sorted(first)))
        counts = np.array([first[token] for token in sorted(first)])
        dimensions = standing_out(phi, counts, options.tau)
        parameters = {"sink_dims": dimensions, "tau": options.tau}
        flagged = await _flagged(client, items, parameters)
    account: dict[str, Any] = {
        "rule": f"above tau in {SHARE_OF_LAYERS:.0%} of layers and prompts",
        "prompts": len(items),
        "first_tokens": {str(token): first[token] for token in sorted(first)},
        "phi": {
            str(d): [round(float(value), 3) for value in phi[:, :, d].mean(axis=0)]
            for d in dimensions
        },
    }
    return _profile(options.name, model, parameters, account, flagged), _told(flagged)


def _body(item: Item) -> dict[str, Any]:
    """What `/tokenize` takes for the item."""
    return {"prompt": item.prompt} if item.prompt is not None else {"messages": item.messages}


def hidden_states(model: str, first_tokens: Sequence[int]) -> np.ndarray:
    """Hidden states at the inputs of layers 2 to L - 2 of prompts of one token each.

    Returns float32 [first tokens, layers, hidden size].

    Raises:
        CalibrationError: the model cannot be loaded, or has fewer than four layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    bundled = bundled_model(model)
    files = str(bundled.directory) if bundled else model
    try:
        config = AutoConfig.from_pretrained(files)
        kind = (
            AutoModelForImageTextToText
            if hasattr(config, "vision_config")
            else AutoModelForCausalLM
        )
        network = kind.from_pretrained(files, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{model}: {error}") from error
    with torch.inference_mode():
        found = network(torch.tensor(first_tokens)[:, None], output_hidden_states=True)
    # Of L layers: the inputs of all, and the last one's output.
    states = found.hidden_states[FIRST_LAYER:-2]
    if not states:
        raise CalibrationError(f"{model} has no layers between the second and the last one")
    return torch.stack(states, dim=1)[:, :, 0].numpy()


def magnitudes(states: np.ndarray) -> np.ndarray:
    """phi_d of each dimension, float32 of the shape of `states` [..., hidden size]."""
    scale = np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + EPSILON)
    return np.asarray(np.abs(states) / scale)


def standing_out(phi: np.ndarray, counts: np.ndarray, tau: float) -> list[int]:
    """The dimensions above `tau` in at least half of the layers and prompts.

    phi: float32 [first tokens, layers, hidden size]. counts: prompts that begin with each.

    Raises:
        CalibrationError: there is none; the message names the largest ones.
    """
    share = np.average((phi > tau).mean(axis=1), axis=0, weights=counts)
    kept = [int(d) for d in np.flatnonzero(share >= SHARE_OF_LAYERS)]
    if kept:
        return kept
    typical = np.median(phi, axis=(0, 1))
    largest = np.argsort(-typical, kind="stable")[:NAMED]
    named = ", ".join(f"{d} ({typical[d]:.1f})" for d in largest)
    raise CalibrationError(
        f"no dimension of the first token stands out by more than --tau {tau:g}; the largest, with "
        f"the median of phi over layers: {named}"
    )


async def _flagged(
    client: Client, items: Sequence[Item], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Of each layer the mean share of an image's tokens that are sinks, over the prompts with images."""
    pictured = [item for item in items if _has_image(item)]
    intervention = {"method": "var", **parameters, "report": "full"}
    reports = await asyncio.gather(
        *(client.report(item.messages or (), intervention) for item in pictured)
    )
    shares: dict[str, list[float]] = {}
    for report in reports:
        keys = [key for start, end in report["image_keys"] for key in range(start, end)]
        for layer in report["sinks"]:
            sinks = set(report.get("sink_keys", {}).get(layer, ()))
            shares.setdefault(layer, []).append(len(sinks.intersection(keys)) / len(keys))
    return {
        "images": len(pictured),
        "flagged": {layer: round(float(np.mean(each)), 4) for layer, each in shares.items()},
    }


def _has_image(item: Item) -> bool:
    parts = (message.get("content") for message in item.messages or ())
    return any(
        isinstance(part, dict) and part.get("type") == "image_url"
        for content in parts
        if isinstance(content, list)
        for part in content
    )


def _told(flagged: Mapping[str, Any]) -> str:
    if not flagged["images"]:
        return "no item has an image: what is flagged among the tokens of images was not looked at"
    most, layer = max((share, layer) for layer, share in flagged["flagged"].items())
    told = f"of the images' tokens {most:.1%} are sinks at most, in layer {layer}"
    if most > MOST_OF_AN_IMAGE:
        told += f"\nwarning: that is more than {MOST_OF_AN_IMAGE:.0%}; a larger --tau may be needed"
    return told


def _profile(
    name: str,
    model: ModelIdentity,
    parameters: Mapping[str, Any],
    account: Mapping[str, Any],
    flagged: Mapping[str, Any],
) -> Profile:
    document = {
        "schema": SCHEMA,
        "name": name,
        "method": "var",
        "model": model.model_dump(),
        "parameters": parameters,
        "calibration": account,
        "evaluation": flagged,
        "heed": __version__,
    }
    return Profile.model_validate(document)
