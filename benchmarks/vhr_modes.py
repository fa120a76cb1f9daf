"""How far VHR's masked mode chooses the heads that the paper's second run would: heads per layer, on captions.

    python benchmarks/vhr_modes.py [--model DIR] [--most 100]

For each picture the last prompt row's head outputs are compared with what they are without the image: by
leaving its keys out of the row's softmax (masked), and in a run of the prompt without its visual tokens,
renumbered (companion). Everything in transformers, float32, without reinforcement, so that both modes
judge the same outputs. Overlap is the share of the chosen half that is the same; two halves that have
nothing to do with each other would overlap by a half.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vision_definition import bound
from vision_reference import VisionReference

from heed_server.models import bundled_model
from heed_tiny_vision import scenes
from heed_tiny_vision.evaluate import Subject
from heed_tiny_vision.pictures import render


def last_outputs(
    reference: VisionReference, tokens: list[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """By layer, head outputs [heads, head_dim] of the last row, and without its visual keys."""
    visual = reference.images(tokens).visual
    whole, masked = [], []
    for attention in reference._pass(tokens, len(tokens), [], ())[1]:
        value, row = attention.states[2], attention.weights[:, -1]
        text = torch.where(visual, 0.0, row)
        text = text / text.sum(dim=1, keepdim=True)
        whole.append((row[:, None] @ value)[:, 0])
        masked.append((text[:, None] @ value)[:, 0])
    return whole, masked


def chosen(output: torch.Tensor, without: torch.Tensor) -> set[int]:
    """The half of the heads that VHR takes, by its filter and its distance."""
    distance = (output - without).norm(dim=1).tolist()
    size = without.square().sum(dim=1).tolist()
    heads = [
        head
        for head in range(len(distance))
        if not (distance[head] > bound(distance) and size[head] > bound(size))
    ]
    return set(sorted(heads, key=lambda head: (-distance[head], head))[: len(distance) // 2])


def overlaps(directory: Path, most: int) -> NDArray[np.float64]:
    """[pictures, layers], shares of the chosen heads."""
    subject = Subject(directory, most)
    found = []
    for record in subject.records("caption"):
        scene = list(subject.lines("scenes"))[record["scene"]]
        file = io.BytesIO()
        Image.fromarray(render(scenes.from_record(scene))).save(file, "PNG")
        prompt = subject.prompt(record["question"])
        reference = VisionReference(str(directory), [file.getvalue()])
        text = [t for t in prompt if t != reference.model.config.image_token_index]
        whole, masked = last_outputs(reference, prompt)
        companion, _ = last_outputs(VisionReference(str(directory), []), text)
        pairs = [
            (chosen(o, one), chosen(o, other))
            for o, one, other in zip(whole, masked, companion, strict=True)
        ]
        found.append([len(one & other) / max(len(other), 1) for one, other in pairs])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="its directory; the bundled model's by default")
    parser.add_argument("--most", type=int, default=100, help="pictures")
    options = parser.parse_args()
    bundled = bundled_model("heed-tiny-vision")
    directory = options.model or (bundled.directory if bundled is not None else None)
    if directory is None:
        raise SystemExit("heed-tiny-vision is not installed: say which --model")
    torch.set_num_threads(1)
    found = overlaps(directory, options.most)
    print(f"{len(found)} pictures; share of the chosen heads that both modes choose")
    print("| layer | " + " | ".join(map(str, range(found.shape[1]))) + " | all |")
    print("|" + " --- |" * (found.shape[1] + 2))
    means = [*found.mean(axis=0), found.mean()]
    print("| share | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
