"""What the vision methods do to heed-tiny-vision: answers, captions and existence, with intervals.

    python benchmarks/vision.py            # starts a server for the run; --url uses a running one

Per setting, greedy, over the bundled evaluation sets (500 pictures each; --most for a quick look):
exact answers on colour, count and place; existence questions (POPE-like); captions of at most 48
tokens (CHAIR-like), with recall and mean length beside, without which CHAIR says little. Differences
are to no interventions on the same pictures, in points of percent, with 95 % intervals from a paired
bootstrap over pictures. `vision_speed.py` measures the time.
"""

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from shares import Share

from heed_server.measuring import servers
from heed_server.models import bundled_model
from heed_tiny_vision import scenes
from heed_tiny_vision.pictures import render
from heed_tiny_vision.questions import mentioned

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
    "var": [{"method": "var", "profile": "var"}],
    "var 0.9": [{"method": "var", "profile": "var", "move_fraction": 0.9}],
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
    ) -> list[str]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(record: Record) -> str:
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
            text: str = response.json()["choices"][0]["message"]["content"]
            return text

        return list(await asyncio.gather(*map(one, records)))

    def _lines(self, name: str) -> Iterator[Record]:
        for line in (self.evaluation / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


@dataclass(frozen=True)
class Measured:
    """One setting: shares by measure, mean words of a caption, and how often existence is affirmed."""

    shares: dict[str, Share]
    words: float
    yes: float


async def measure(subject: Subject, edits: list[Record]) -> Measured:
    shares: dict[str, Share] = {}
    for task in TASKS:
        records = subject.records(task)
        said = await subject.answers(records, ANSWER_TOKENS, edits)
        shares[task] = Share.right(
            text == r["answer"] for text, r in zip(said, records, strict=True)
        )
    affirmed: list[bool] = []
    for path in sorted(subject.evaluation.glob("existence_*.jsonl")):
        records = subject.records(path.stem)
        said = await subject.answers(records, ANSWER_TOKENS, edits)
        claims = [text == "yes" for text in said]
        affirmed += claims
        shares[path.stem.replace("_", " ")] = Share.right(
            claim == (r["answer"] == "yes") for claim, r in zip(claims, records, strict=True)
        )
    records = subject.records("caption")
    captions = await subject.answers(records, CAPTION_TOKENS, edits)
    shares |= _chair(captions, [record["objects"] for record in records])
    words = float(np.mean([len(caption.split()) for caption in captions]))
    return Measured(shares, words, float(100 * np.mean(affirmed)))


def _chair(captions: Sequence[str], kinds: Sequence[Sequence[str]]) -> dict[str, Share]:
    """CHAIR_S, CHAIR_I and recall as `heed_tiny_vision.hallucination.chair` counts them."""
    named = [mentioned(caption) for caption in captions]
    absent = [set(said) - set(there) for said, there in zip(named, kinds, strict=True)]
    mentions = np.array([len(said) for said in named], float)
    wrong = np.array([len(each) for each in absent], float)
    return {
        "CHAIR_S": Share.right(wrong > 0),
        "CHAIR_I": Share(wrong, mentions),
        "recall": Share(mentions - wrong, np.array([len(there) for there in kinds], float)),
    }


def report(results: dict[str, Measured]) -> str:
    """Two Markdown tables: answers, and captions. The first setting is what others are compared with."""
    plain = next(iter(results.values()))
    captions = ("CHAIR_S", "CHAIR_I", "recall")
    answers = [name for name in plain.shares if name not in captions]
    return "\n\n".join(
        [
            _table(results, plain, answers, "yes %", lambda found: f"{found.yes:.1f}"),
            _table(results, plain, captions, "words", lambda found: f"{found.words:.2f}"),
        ]
    )


def _table(
    results: dict[str, Measured],
    plain: Measured,
    measures: Sequence[str],
    last: str,
    beside: Callable[[Measured], str],
) -> str:
    lines = [f"| setting | {' | '.join(measures)} | {last} |", "|" + " --- |" * (len(measures) + 2)]
    for setting, found in results.items():
        cells = []
        for name in measures:
            share = found.shares[name]
            cell = "{:.1f} [{:.1f}, {:.1f}]".format(share.percent, *share.interval())
            if found is not plain:
                cell = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*share.change(plain.shares[name]))
            cells.append(cell)
        lines.append(f"| {setting} | {' | '.join(cells)} | {beside(found)} |")
    return "\n".join(lines)


def as_record(found: Measured, plain: Measured) -> Record:
    shares = {
        name: {
            "percent": share.percent,
            "interval": share.interval(),
            "change": share.change(plain.shares[name]),
            "items": len(share.hits),
        }
        for name, share in found.shares.items()
    }
    return {"shares": shares, "words": found.words, "yes": found.yes}


def data_uri(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def run(options: argparse.Namespace, evaluation: Path) -> dict[str, Measured]:
    chosen = ["none", *(name for name in options.settings or SETTINGS if name != "none")]
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
        plain = results["none"]
        records = {name: as_record(found, plain) for name, found in results.items()}
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
