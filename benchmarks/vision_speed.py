"""Throughput of image requests with VAR and with VHR against none, and VAR the way research code runs it.

    python benchmarks/vision_speed.py --rounds 6 [--sequential 4] [--json FILE]

Each round sends the same 16 pictures at once with every setting, in an order drawn anew; ratios of speed
are to the round's plain burst (above 1 is faster). One setting is plain and sends each question without
its picture first, for one token: what VHR's companion costs at least. Then transformers answers the first
--sequential of them one at a time, its eager attention patched in Python as the formulas of VAR read:
plain and edited.
heed-tiny-vision in float32, captions of a fixed length, no prefix caching.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor
from transformers.models.llama.modeling_llama import repeat_kv

from heed_server.measuring import servers
from heed_server.models import BundledModel, bundled_model
from heed_server.scoring.images import question_about

REQUESTS = 16
QUESTION = "Describe the picture."
PAUSE_SECONDS = 1.5
"""vLLM's workers spin for a second after their last step, and a burst that comes then stalls."""
MOVE, RHO, LEAST_MASS = 0.6, 0.5, 0.2
TEXT_FIRST = "none, its text first"
SETTINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "var": {"method": "var", "profile": "var"},
    "vhr, companion": {"method": "vhr"},
    "vhr, masked": {"method": "vhr", "mode": "masked"},
    TEXT_FIRST: None,
}


def main() -> None:
    options = _options()
    bundled = bundled_model("heed-tiny-vision")
    if bundled is None:
        raise SystemExit("heed-tiny-vision is not installed")
    turns = [
        question_about(f"pictures.zip/{number}.png", QUESTION, bundled.evaluation)
        for number in range(REQUESTS)
    ]
    flags = ["--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching"]
    flags += ["--kv-cache-memory-bytes", str(1 << 28)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        servers.heed(bundled.name, flags, Path(scratch) / "heed.log") as server,
    ):
        seconds = asyncio.run(_rounds(server.url, turns, options))
        listed = httpx.get(f"{server.url}/v1/intervention-profiles").json()["data"]
    parameters = next(each["parameters"] for each in listed if each["name"] == "var")
    result = {
        "ratios": _ratios(seconds),
        "tokens_per_second": {
            name: round(REQUESTS * options.output / float(np.median(each)), 1)
            for name, each in seconds.items()
        },
        "research_way": _research_way(bundled, parameters, options),
    }
    print(_table(result, options))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=int, default=48, help="tokens of a caption [48]")
    parser.add_argument("--sequential", type=int, default=4, help="requests to transformers [4]")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


async def _rounds(
    url: str, turns: Sequence[dict[str, Any]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each burst, by setting; the first round warms up and is not kept."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for number in range(-1, options.rounds):
            for name in order.sample(list(SETTINGS), len(SETTINGS)):
                await asyncio.sleep(PAUSE_SECONDS)
                took = await _burst(client, turns, name, options.output)
                if number >= 0:
                    seconds[name].append(took)
    return seconds


async def _burst(
    client: httpx.AsyncClient,
    turns: Sequence[dict[str, Any]],
    setting: str,
    tokens: int,
) -> float:
    intervention = SETTINGS[setting]

    async def answer(turn: dict[str, Any], tokens: int) -> None:
        body = {
            "messages": [turn],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "interventions": [] if intervention is None else [intervention],
        }
        (await client.post("/v1/chat/completions", json=body)).raise_for_status()

    async def one(turn: dict[str, Any]) -> None:
        if setting == TEXT_FIRST:
            await answer({"role": "user", "content": QUESTION}, 1)
        await answer(turn, tokens)

    began = time.perf_counter()
    await asyncio.gather(*map(one, turns))
    return time.perf_counter() - began


def _ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    ratios = {name: np.divide(seconds["none"], each) for name, each in seconds.items()}
    return {
        name: {"median": float(np.median(r)), "least": float(r.min()), "most": float(r.max())}
        for name, r in ratios.items()
    }


class ResearchVar:
    """VAR as a patch of one transformers model, for one request at a time (arXiv 2503.03321)."""

    def __init__(self, model: Any, sink_dims: list[int], tau: float) -> None:
        self.model, self.sink_dims, self.tau = model, sink_dims, tau
        self.visual = torch.zeros(0, dtype=torch.bool)
        self.sinks: dict[int, torch.Tensor] = {}
        self.on = False
        layers = model.model.language_model.layers
        self.layers = range(2, len(layers) - 1)
        for number in self.layers:
            layers[number].register_forward_pre_hook(self._flag(number), with_kwargs=True)

    def _flag(self, number: int) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = arguments[0] if arguments else named["hidden_states"]
            if x.shape[1] == len(self.visual):  # the prompt
                scale = (x.square().mean(dim=-1) + 1e-6).sqrt()
                phi = x[..., self.sink_dims].abs().amax(dim=-1) / scale
                self.sinks[number] = phi[0] > self.tau

        return hook

    def attention(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float, **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        key = repeat_kv(key, module.num_key_value_groups)
        value = repeat_kv(value, module.num_key_value_groups)
        logits = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            logits = logits + attention_mask[..., : key.shape[-2]]
        weights = torch.softmax(logits, dim=-1)
        if self.on and module.layer_idx in self.layers:
            weights = self._moved(weights, self.sinks[module.layer_idx])
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def _moved(self, weights: torch.Tensor, flagged: torch.Tensor) -> torch.Tensor:
        if not (flagged & self.visual).any():
            return weights
        generated = weights.shape[-1] - len(flagged)
        sinks = torch.nn.functional.pad(flagged, (0, generated))
        others = torch.nn.functional.pad(self.visual & ~flagged, (0, generated))
        of_sinks = (weights * sinks).sum(dim=-1, keepdim=True)
        of_others = (weights * others).sum(dim=-1, keepdim=True)
        image = torch.nn.functional.pad(self.visual, (0, generated))
        of_image = (weights * image).sum(dim=-1, keepdim=True)
        open_here = (of_image >= LEAST_MASS) & (of_others >= RHO * of_image)
        rows = torch.arange(weights.shape[-1] - weights.shape[-2], weights.shape[-1])
        after = rows > self.visual.nonzero().max()
        gain = 1 + MOVE * of_sinks / of_others.clamp_min(1e-30)
        edited = torch.where(sinks, (1 - MOVE) * weights, weights)
        edited = torch.where(others, gain * edited, edited)
        return torch.where(open_here & after[:, None], edited, weights)


@torch.no_grad()
def _research_way(
    bundled: BundledModel, parameters: dict[str, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Tokens a second, plain and with VAR."""
    processor = AutoProcessor.from_pretrained(bundled.directory)
    model = AutoModelForImageTextToText.from_pretrained(
        bundled.directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    patch = ResearchVar(model, parameters["sink_dims"], parameters["tau"])
    AttentionInterface.register("research_var", patch.attention)
    model.model.language_model.config._attn_implementation = "research_var"
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    with zipfile.ZipFile(bundled.evaluation / "pictures.zip") as archive:
        pictures = [
            Image.open(archive.open(f"{number}.png")).convert("RGB")
            for number in range(options.sequential)
        ]
    found: dict[str, float] = {}
    for name, patch.on in (("plain", False), ("plain", False), ("var", True)):
        began = time.perf_counter()
        for picture in pictures:
            inputs = processor(text=prompt, images=picture, return_tensors="pt")
            patch.visual = inputs["input_ids"][0] == model.config.image_token_id
            model.generate(
                **inputs, max_new_tokens=options.output, min_new_tokens=options.output,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        found[name] = round(options.sequential * options.output / seconds, 1)
    return found


def _table(result: dict[str, Any], options: argparse.Namespace) -> str:
    lines = [
        f"{REQUESTS} pictures at once, {options.output} tokens each, {options.rounds} rounds\n",
        "| setting | tokens per second | speed over none | range |",
        "| --- | --- | --- | --- |",
    ]
    speeds = result["tokens_per_second"]
    lines += [
        f"| {name} | {speeds[name]} | {r['median']:.3f} | {r['least']:.3f} to {r['most']:.3f} |"
        for name, r in result["ratios"].items()
    ]
    alone = result["research_way"]
    lines += [
        f"| transformers, one at a time, none | {alone['plain']} | {alone['plain'] / speeds['none']:.3f} | |",
        f"| transformers, one at a time, var | {alone['var']} | {alone['var'] / speeds['none']:.3f} | |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
