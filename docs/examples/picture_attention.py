"""Draw where a vision-language model looks, before and after an intervention.

    python docs/examples/picture_attention.py PICTURE OUT.png \\
        --question "Describe the picture." --intervention '{"method": "pai", "alpha": 0.5}'
    python docs/examples/picture_attention.py PICTURE OUT.png \\
        --question "Where is the star?" --against "Describe the picture."

Asks a running Heed server (--url) for an answer and, by `POST /v1/attention`, for the attention of the
prompt's last row to the tokens of the image, averaged over heads and over --layers. OUT.png shows the
picture, both maps over it, and their difference. With --against the second map is another question's,
and the last one is the ratio of the two (CARVE, arXiv 2509.06461: where a question looks beyond where
any question looks).
"""

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

TILE = 256
GAP = 12
CAPTION = 18
WARM, COLD = np.array([214, 69, 38]), np.array([38, 99, 214])
SMALLEST = 1e-8


class Server:
    """A Heed server, and the picture that it is asked about."""

    def __init__(self, url: str, model: str | None, picture: Path) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.model = model or self.http.get("/v1/models").json()["data"][0]["id"]
        encoded = base64.b64encode(picture.read_bytes()).decode()
        self.image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}

    def answer(self, question: str, interventions: list[Any]) -> str:
        fields = {"max_tokens": 48, "temperature": 0, "interventions": interventions}
        answer = self._ask("/v1/chat/completions", question, fields)
        text: str = answer["choices"][0]["message"]["content"]
        return text

    def map(
        self, question: str, interventions: list[Any], layers: list[int] | str
    ) -> tuple[np.ndarray, float]:
        """The last row's weights on the image's tokens, float64 [side, side], and their sum.

        Means over the heads of `layers`. For an image that is a square of tokens.
        """
        fields = {
            "rows": [-1],
            "layers": layers,
            "include": ["attention"],
            "interventions": interventions,
        }
        found = self._ask("/v1/attention", question, fields)
        ((start, end),) = found["images"][0]
        weights = np.array(found["attention"])[:, :, 0, start:end].mean(axis=(0, 1))
        side = round(len(weights) ** 0.5)
        return weights.reshape(side, side), float(weights.sum())

    def _ask(self, path: str, question: str, fields: dict[str, Any]) -> dict[str, Any]:
        content = [self.image, {"type": "text", "text": question}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **fields}
        response = self.http.post(path, json=body)
        if response.is_error:
            sys.exit(f"{path}: {response.text}")
        answer: dict[str, Any] = response.json()
        return answer


def over(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """The picture, greyed, with a value in [-1, 1] for each of its cells: warm above 0, cold below."""
    large = picture.convert("L").convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
    step = TILE // len(values)
    strength = np.abs(values).repeat(step, 0).repeat(step, 1)[..., None] * 0.85
    colour = np.where((values > 0).repeat(step, 0).repeat(step, 1)[..., None], WARM, COLD)
    shown = np.asarray(large.resize(strength.shape[1::-1])) * (1 - strength) + colour * strength
    return Image.fromarray(shown.astype(np.uint8)).resize((TILE, TILE))


def row(tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each with its name above it."""
    width = GAP + len(tiles) * (TILE + GAP)
    sheet = Image.new("RGB", (width, TILE + CAPTION + 2 * GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, tile) in enumerate(tiles):
        left = GAP + number * (TILE + GAP)
        draw.text((left, GAP // 2), name, fill="black")
        sheet.paste(tile, (left, GAP + CAPTION))
    return sheet


def main() -> None:
    options = _options()
    picture = Image.open(options.picture).convert("RGB")
    server = Server(options.url, options.model, options.picture)
    layers = options.layers or "all"
    before, mass = server.map(options.question, [], layers)
    print(f"{options.question}\n  {server.answer(options.question, [])!r}")
    print(f"  attention on the image: {mass:.3f}")
    if options.against is not None:
        after, mass = server.map(options.against, [], layers)
        print(f"{options.against}\n  attention on the image: {mass:.3f}")
        ratio = before / (after + SMALLEST)
        compared = "ratio", np.clip(ratio / ratio.max(), 0, 1)
        names = options.question, options.against
    else:
        edits = [options.intervention]
        after, mass = server.map(options.question, edits, layers)
        print(
            f"with {json.dumps(options.intervention)}\n  {server.answer(options.question, edits)!r}"
        )
        print(f"  attention on the image: {mass:.3f}")
        change = after - before
        compared = "after - before", change / max(float(np.abs(change).max()), SMALLEST)
        names = "before", "after"
    most = max(before.max(), after.max())
    tiles = [
        ("picture", picture.resize((TILE, TILE), Image.Resampling.NEAREST)),
        (names[0], over(picture, before / most)),
        (names[1], over(picture, after / most)),
        (compared[0], over(picture, compared[1])),
    ]
    row(tiles).save(options.out, optimize=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--question", default="Describe the picture.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--intervention", type=json.loads, help="as in a request")
    what.add_argument("--against", metavar="QUESTION", help="contrast with the map of this one")
    parser.add_argument("--layers", type=json.loads, help="layer ids as a JSON list [all]")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
