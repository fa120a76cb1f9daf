"""Where images lie in the prompts of other vision-language models than LLaVA, and what edits do there.

Random weights, two pictures of different sizes, chunks of 64 tokens. What is expected comes from
transformers: the prompt from its processor, positions from the prompt, log-probabilities from
`architecture_reference`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_reference import ArchitectureReference
from conformance import TOLERANCE, assert_close, largest_difference
from live_server import ENVIRONMENT, Completion, serving
from reference_results import Result
from vision_architectures import ARCHITECTURES, make_model
from vision_cases import chosen_in
from vision_server import VISION, Asked, ask, data_uri, picture

pytestmark = pytest.mark.slow

Edits = list[dict[str, Any]]

QUESTION = "Which of the two has more in it?"
PICTURES = (picture(1, (140, 84)), picture(2, (50, 150)))
PARTS = (PICTURES[0], "and ", PICTURES[1], QUESTION)
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 32,
    "block_size": 32,
    "limit_mm_per_prompt": {"image": 2},
}
CASES: dict[str, Edits] = {
    "plain": [],
    "pai": [{"method": "pai", "alpha": 0.7, "layers": "all"}],
    "vaf and the system prompt": [
        {"method": "vaf", "enh_para": 2, "sup_para": 0.3, "layers": "all"}
    ],
    "avar of generated rows": [
        {"method": "avar", "alpha_img": 0.5, "alpha_sys": 0.8, "rows": "generated"}
    ],
    "adaptvis": [{"method": "adaptvis", "w": 3}],
    "var": [
        {"method": "var", "sink_dims": [17, 40], "tau": 1.5, "min_visual_mass": 0.05}
        | {"layers": "all", "move_fraction": 0.9}
    ],
    "vhr": [{"method": "vhr", "mode": "masked", "report": "full", "layers": "all"}],
    "spin": [{"method": "spin", "ratio": 0.5, "lambda": 0}],
    "gift": [{"method": "gift", "saliency_layer": 0, "layers": [1]}],
    "locore after the images": [
        {"method": "locore", "beta": 1, "window": 12, "include_prompt_tail": True}
    ],
    "the first image, for one head": [
        {"method": "emphasis", "spans": [{"image": 1}], "alpha": 0.1, "heads": [1]}
    ],
    "the second image, and rows after both": [
        {"method": "emphasis", "spans": [{"image": 2}], "alpha": 0.2},
        {"method": "head_gain", "gain": 2, "rows": "after_image"},
    ],
    "streaming": [{"method": "streaming_llm", "sinks": 2, "window": 17, "positions": "original"}],
    "snapkv": [{"method": "snapkv", "budget": 24, "window": 4, "sinks": 2}],
}
NAMES_IMAGES = ("pai", "vaf and the system prompt", "adaptvis", "spin", "gift")
# What the server cannot do, by the path that it names.
REFUSED: dict[str, tuple[Edits, str]] = {
    "paint": ([{"method": "paint", "layers": "all"}], "interventions.0.method"),
    "a third image": (
        [{"method": "emphasis", "spans": [{"image": 3}]}],
        "interventions.0.spans.0.image",
    ),
}
# Images of these stand at positions in three axes, which no distance can be taken off from.
THREE_AXES = ("Qwen2-VL", "Qwen2.5-VL")
REFUSED_IN_THREE_AXES: dict[str, tuple[Edits, str]] = {
    "rolling": ([{"method": "streaming_llm", "window": 17}], "interventions.0.positions"),
    "expected attention": (
        [{"method": "expected_attention", "budget": 24}],
        "interventions.0.method",
    ),
}


@dataclass(frozen=True)
class Ran:
    """What an engine gave for one architecture, and the reference for the same chat."""

    name: str
    reference: ArchitectureReference
    answers: dict[str, Asked]
    refused: dict[str, list[Any]]


def refusals(name: str) -> dict[str, tuple[Edits, str]]:
    """What is refused on an architecture."""
    return REFUSED | (REFUSED_IN_THREE_AXES if name in THREE_AXES else {})


def model_of(name: str, directory: Path) -> str:
    """The model directory of an architecture; the test is skipped where vLLM cannot load it."""
    if ARCHITECTURES[name].needs_torchvision and find_spec("torchvision") is None:
        pytest.skip(f"vLLM's {name} and its processor need torchvision, which is not installed")
    return str(make_model(name, directory / "model"))


def reference_of(name: str, model: str, parts: Sequence[str | bytes]) -> ArchitectureReference:
    architecture = ARCHITECTURES[name]
    return ArchitectureReference(model, architecture.image_token, architecture.markers, parts)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All cases on one architecture, in one batch of one engine."""
    name: str = request.param
    directory = tmp_path_factory.mktemp(name)
    model = model_of(name, directory)
    refused = refusals(name)
    job = {
        "model": model,
        "options": OPTIONS,
        "parts": [part if isinstance(part, str) else data_uri(part) for part in PARTS],
        "edits": list(CASES.values()),
        "max_tokens": 8,
        "refused": [edits for edits, _ in refused.values()],
    }
    found = run_vision_engine(directory, job)
    answers = [
        Asked(answer["prompt"], PICTURES, Completion(**answer["completion"]))
        for answer in found["answers"]
    ]
    return Ran(
        name,
        reference_of(name, model, PARTS),
        dict(zip(CASES, answers, strict=True)),
        dict(zip(refused, found["refused"], strict=True)),
    )


def run_vision_engine(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What `vision_engine.py` found."""
    (directory / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("vision_engine.py")
    done = subprocess.run(
        [sys.executable, str(script), str(directory / "job.json"), str(directory / "found.json")],
        # The engine runs in this one process: nothing here waits for another request.
        env={**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((directory / "found.json").read_text())
    return found


def in_positions(edit: dict[str, Any], visual: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The edit with positions in the place of images."""
    if "spans" not in edit:
        return edit
    positions = [at for span in edit["spans"] for at in visual[span["image"] - 1]]
    return edit | {"spans": [{"start": at, "end": at + 1} for at in positions]}


def assert_equals_the_reference(
    reference: ArchitectureReference, asked: Asked, edits: Edits
) -> Result:
    """The answer's log-probabilities are those of the reference, which is returned; all edits were applied."""
    done = asked.completion
    reports = done.report or []
    assert [report["status"] for report in reports] == ["applied"] * len(edits)
    told = [edit | chosen_in(report) for edit, report in zip(edits, reports, strict=True)]
    expected = reference.generate(reference.prompt, told, forced_tokens=done.tokens)
    assert_close(
        [*done.prompt_logprobs, *done.logprobs],
        [*expected.prompt_logprobs, *expected.token_logprobs],
        TOLERANCE,
        str(edits),
    )
    return expected


def test_the_reference_without_edits_is_transformers_own_model(ran: Ran) -> None:
    prompt = ran.reference.prompt
    here = ran.reference.run(prompt, len(prompt)).logprobs
    with torch.no_grad():
        logits = ran.reference.model(**ran.reference.inputs(prompt), use_cache=False).logits[0]
    assert float((logits.log_softmax(-1) - here).abs().max()) < TOLERANCE / 10


def test_the_prompt_is_the_one_of_transformers_processor(ran: Ran) -> None:
    assert ran.answers["plain"].prompt == ran.reference.prompt
    first, second = ran.reference.visual
    assert first[-1] < second[0]
    assert len(first) != len(second)


@pytest.mark.parametrize("case", NAMES_IMAGES)
def test_reports_name_the_tokens_of_both_pictures_and_no_markers(ran: Ran, case: str) -> None:
    (report,) = ran.answers[case].completion.report or []
    told = [at for start, end in report["image_keys"] for at in range(start, end)]
    assert told == [at for image in ran.reference.visual for at in image]


@pytest.mark.parametrize("case", CASES)
def test_a_chat_with_two_pictures_equals_the_reference(ran: Ran, case: str) -> None:
    edits = [in_positions(edit, ran.reference.visual) for edit in CASES[case]]
    asked = ran.answers[case]
    expected = assert_equals_the_reference(ran.reference, asked, edits)
    if edits:
        plain = ran.reference.generate(asked.prompt, forced_tokens=asked.completion.tokens)
        moved, _ = largest_difference(expected.token_logprobs, plain.token_logprobs)
        assert moved > 10 * TOLERANCE


def test_what_an_architecture_cannot_do_is_refused(ran: Ran) -> None:
    for name, (_, path) in refusals(ran.name).items():
        parameter, status, message = ran.refused[name]
        assert (parameter, status) == (path, 400), message


# Markers stay in the prompt without its images, and positions in three axes become ordinary ones.
@pytest.mark.parametrize("name", ["Idefics3", "Qwen2-VL"])
def test_heads_are_compared_with_the_prompt_without_its_images(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path)
    edits: Edits = [{"method": "vhr", "report": "full", "layers": "all"}]
    with serving(tmp_path / "server.log", [*VISION, "--max-model-len", "512"], model) as server:
        asked = ask(server, QUESTION, PICTURES, edits, prompt_logprobs=True)
    reference = reference_of(name, model, [*PICTURES, QUESTION])
    assert asked.prompt == reference.prompt
    assert_equals_the_reference(reference, asked, edits)
    (report,) = asked.completion.report or []
    without = len(reference.prompt) - sum(len(image) for image in reference.visual)
    assert report["companion"]["prompt_tokens"] == without
