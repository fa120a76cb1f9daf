"""What the vision methods do to heed-tiny-vision: answers, captions, existence and speed, with intervals.

    python benchmarks/vision.py            # starts a server for the run; --url uses a running one

Per setting, greedy, over the bundled evaluation sets (500 pictures each; --most for a quick look):
exact answers on colour, count and place; existence questions (POPE-like); captions of at most 48
tokens (CHAIR-like), with recall and mean length beside, without which CHAIR says little. Intervals are
95 % (Wilson). The last columns are the captions' throughput with 16 requests at a time.
"""

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from heed_server.measuring import servers
from heed_server.models import bundled_model
from heed_tiny.evaluate import share
from heed_tiny_vision import hallucination, scenes
from heed_tiny_vision.pictures import render

Record = dict[str, Any]
AT_ONCE = 16
CAPTION_TOKENS, ANSWER_TOKENS = 48, 8
TASKS = ("colour", "count", "place")
# Methods with layers of a large model's have those in the middle of this one's six.
SETTINGS: dict[str, list[Record]] = {
    "none": [],
    "pai 0.2": [{"method": "pai", "alpha": 0.2}],
    "pai 0.5": [{"method": "pai", "alpha": 0.5}],
    "paint 0.4": [{"method": "paint", "alpha": 0.4}],
    "paint 0.7": [{"method": "paint"}],
    "vaf 1.15": [{"method": "vaf", "layers": [2, 3]}],
    "avar 0.15": [{"method": "avar"}],
    "avar 0.5": [{"method": "avar", "alpha_img": 0.5}],
    "adaptvis 0.5": [{"method": "adaptvis", "w": 0.5}],
    "adaptvis 1.5": [{"method": "adaptvis", "w": 1.5}],
    "locore": [{"method": "locore", "include_prompt_tail": True}],
    "vhr": [{"method": "vhr"}],
    "vhr, masked": [{"method": "vhr", "mode": "masked"}],
    "vhr, masked, 1.3": [{"method": "vhr", "mode": "masked", "alpha": 1.3}],
    "spin": [{"method": "spin"}],
    "gift 5": [{"method": "gift", "saliency_layer": 1, "layers": [2, 3]}],
    "gift 2": [{"method": "gift", "saliency_layer": 1, "layers": [2, 3], "alpha": 2}],
}


class Subject:
    """A server and the evaluation sets of its model."""

    def __init__(self, client: httpx.AsyncClient, evaluation: Path, most: int | None) -> None:
        self.client, self.evaluation, self.most = client, evaluation, most
        self.pictures = [
            data_uri(render(scenes.from_record(record))) for record in self._lines("scenes")
        ]

    def records(self, name: str) -> list[Record]:
        return list(self._lines(name))[: self.most]

    async def answers(
        self, records: Sequence[Record], tokens: int, edits: list[Record]
    ) -> list[tuple[str, int]]:
        """Text and number of tokens of each record's answer."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(record: Record) -> tuple[str, int]:
            picture = {"type": "image_url", "image_url": {"url": self.pictures[record["scene"]]}}
            content = [picture, {"type": "text", "text": record["question"]}]
            body = {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": tokens,
                "temperature": 0,
                "interventions": edits,
            }
            async with gate:
                response = await self.client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            text: str = answer["choices"][0]["message"]["content"]
            return text, answer["usage"]["completion_tokens"]

        return list(await asyncio.gather(*map(one, records)))

    def _lines(self, name: str) -> Iterator[Record]:
        for line in (self.evaluation / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


async def measure(subject: Subject, edits: list[Record]) -> Record:
    """One setting: measures as `hallucination` and `share` give them, and tokens a second."""
    found: Record = {}
    for task in TASKS:
        records = subject.records(task)
        said = await subject.answers(records, ANSWER_TOKENS, edits)
        right = sum(text == r["answer"] for (text, _), r in zip(said, records, strict=True))
        found[task] = share(right, len(records))
    for path in sorted(subject.evaluation.glob("existence_*.jsonl")):
        records = subject.records(path.stem)
        said = await subject.answers(records, ANSWER_TOKENS, edits)
        true = [record["answer"] for record in records]
        found[path.stem] = hallucination.pope([text for text, _ in said], true)
    records = subject.records("caption")
    began = time.perf_counter()
    said = await subject.answers(records, CAPTION_TOKENS, edits)
    seconds = time.perf_counter() - began
    captions = [text for text, _ in said]
    found["captions"] = hallucination.chair(captions, [record["objects"] for record in records])
    found["captions_per_second"] = round(len(records) / seconds, 2)
    found["tokens_per_second"] = round(sum(count for _, count in said) / seconds, 1)
    return found


def report(results: dict[str, Record]) -> str:
    """The results as a Markdown table."""
    first = next(iter(results.values()))
    existence = [name for name in first if name.startswith("existence_")]
    heads = [*TASKS, *(f"{name.replace('_', ' ')}: accuracy (F1, yes)" for name in existence)]
    heads += ["CHAIR_S", "CHAIR_I", "recall", "words", "captions/s", "tokens/s"]
    lines = ["| setting | " + " | ".join(heads) + " |", "|" + " --- |" * (len(heads) + 1)]
    for setting, found in results.items():
        captions = found["captions"]
        cells = [_shown(found[task]) for task in TASKS]
        for name in existence:
            pope = found[name]
            cells.append(f"{_shown(pope['accuracy'])} ({pope['f1']}, {pope['yes']})")
        cells += [_shown(captions[name]) for name in ("chair_s", "chair_i", "recall")]
        cells += [captions["words"], found["captions_per_second"], found["tokens_per_second"]]
        lines.append(f"| {setting} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _shown(measured: Record) -> str:
    low, high = measured["interval"]
    return f"{measured['percent']} ({low}–{high})"


def data_uri(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def run(options: argparse.Namespace, evaluation: Path) -> dict[str, Record]:
    chosen = options.settings or list(SETTINGS)
    async with httpx.AsyncClient(base_url=options.url, timeout=600) as client:
        subject = Subject(client, evaluation, options.most)
        await subject.answers(subject.records("caption")[:AT_ONCE], 2, [])  # warm-up
        return {name: await measure(subject, SETTINGS[name]) for name in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", help="a running server instead of one for the run")
    parser.add_argument("--model", type=Path, help="its directory; the bundled model's by default")
    parser.add_argument("--most", type=int, help="use only so many records of each file")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="only these")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    bundled = bundled_model("heed-tiny-vision")
    directory = options.model or (bundled.directory if bundled is not None else None)
    if directory is None:
        raise SystemExit("heed-tiny-vision is not installed: say which --model")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if options.url is None:
            flags = ["--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 30)]
            server = servers.heed(
                directory, [*flags, "--enforce-eager"], Path(scratch) / "heed.log"
            )
            options.url = stack.enter_context(server).url
        results = asyncio.run(run(options, directory / "evaluation"))
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
