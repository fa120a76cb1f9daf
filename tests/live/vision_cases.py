"""Cases of the methods that speak of images, and the comparison with the reference."""

from __future__ import annotations

from typing import Any

from conformance import NEAR_TIE, TOLERANCE, assert_close, largest_difference
from live_server import LiveServer
from reference_results import Result
from vision_reference import generate
from vision_server import Asked, trained_model

Edits = list[dict[str, Any]]

# Sinks of heed-tiny stand out less than those of large models, whose threshold is 20. The dimensions are
# any two: what the reference and the server see is the same.
SINKS: dict[str, Any] = {
    "sink_dims": [17, 40],
    "tau": 1.5,
    "min_visual_mass": 0.05,
    "layers": "all",
}

# As in `conformance.CASES`, stronger than anyone would want; privileged ones are allowed here.
VISION_CASES: dict[str, Edits] = {
    "pai": [{"method": "pai", "alpha": 0.7}],
    "pai of some layers": [{"method": "pai", "alpha": 0.6, "layers": [0, -1]}],
    "paint": [{"method": "paint", "alpha": 0.75, "beta": 0.5, "report": "full"}],
    "paint of few patches, beside others": [
        {"method": "paint", "alpha": 0.7, "beta": 0, "local_ratio": 0.1, "layers": [0, -1]},
        {"method": "zerotuning", "gamma": 2},
        {"method": "pai", "alpha": 0.3},
    ],
    "vaf": [{"method": "vaf", "enh_para": 2, "layers": "all"}],
    "vaf and the system prompt": [
        {"method": "vaf", "enh_para": 1.8, "sup_para": 0.3, "layers": [0, 1, 2]}
    ],
    "avar": [{"method": "avar", "alpha_img": 0.5}],
    "avar of generated rows": [
        {"method": "avar", "alpha_img": 0.5, "alpha_sys": 0.8, "rows": "generated"}
    ],
    "adaptvis, sharper": [{"method": "adaptvis", "w": 4}],
    "adaptvis, wider": [{"method": "adaptvis", "w": 0.25, "layers": [1, 2]}],
    "locore after the image": [
        {"method": "locore", "beta": 1, "window": 12, "include_prompt_tail": True}
    ],
    "rows after the image": [{"method": "head_gain", "gain": 2, "rows": "after_image"}],
    "var": [{"method": "var", **SINKS, "move_fraction": 0.9}],
    "var without text sinks": [
        {"method": "var", **SINKS, "move_fraction": 1, "include_text_sinks": False, "rho": 0}
    ],
    "var of generated rows": [{"method": "var", **SINKS, "move_fraction": 0.8, "prefill": False}],
    "var of prompt rows": [{"method": "var", **SINKS, "move_fraction": 0.8, "decode": False}],
    "vhr": [{"method": "vhr", "mode": "masked", "report": "full"}],
    "vhr of a third, unfiltered": [
        {"method": "vhr", "mode": "masked", "select_fraction": 0.34, "filter": False, "alpha": 3.5}
    ],
    "vhr and its companion": [{"method": "vhr", "report": "full"}],
    "vhr and its companion, beside others": [
        {"method": "zerotuning", "gamma": 2},
        {"method": "vhr", "mode": "companion", "filter": False, "alpha": 3, "layers": [0, 2, -1]},
        {"method": "pai", "alpha": 0.6},
    ],
    "vhr of every row": [{"method": "vhr", "mode": "masked", "rows": "all", "alpha": 1.5}],
    "vhr of every row and its companion, beside others": [
        {"method": "zerotuning", "gamma": 2},
        {"method": "vhr", "rows": "all", "select_fraction": 0.34, "filter": False},
        {"method": "pai", "alpha": 0.6},
    ],
    "spin": [{"method": "spin", "ratio": 0.5, "lambda": 0}],
    "spin of some layers": [{"method": "spin", "ratio": 0.7, "lambda": 0.2, "layers": [1, -2]}],
    "gift": [{"method": "gift", "saliency_layer": 1, "layers": [2, 3, 4]}],
    "gift of some words": [
        {
            "method": "gift",
            "saliency_layer": 0,
            "layers": [1, 5],
            "alpha": 3,
            "beta": 1.7,
            "head_fraction": 0.34,
            "content_rows": [{"start": 68, "end": 70}, {"start": 71, "end": 73}],
        },
        {"method": "zerotuning", "gamma": 2},
    ],
    "choosing and moving": [
        {"method": "vhr", "mode": "masked"},
        {"method": "var", **SINKS, "min_visual_mass": 0.1},
        {"method": "zerotuning", "gamma": 2},
        {"method": "head_gain", "gain": 1.3, "rows": "after_image"},
    ],
    "everything together": [
        {"method": "pai", "alpha": 0.4},
        {"method": "vaf", "enh_para": 1.4, "layers": [1, 2, 3]},
        {"method": "avar", "alpha_img": 0.3, "alpha_sys": 0.2},
        {"method": "adaptvis", "w": 1.5},
        {"method": "attention_scale", "q_scale": 1.2, "heads": [0, 3]},
        {"method": "zerotuning", "gamma": 0.5},
        {"method": "locore", "beta": 0.5, "include_prompt_tail": True},
    ],
}


def is_whole(edits: Edits) -> bool:
    """Whether the prompt has to be one step."""
    return any(edit["method"] == "vhr" and edit.get("rows") == "all" for edit in edits)


def vision_reference(server: LiveServer, asked: Asked, edits: Edits) -> Result:
    """The reference along the tokens that the server chose."""
    reports = asked.completion.report or [{}] * len(edits)
    told = [edit | chosen_in(report) for edit, report in zip(edits, reports, strict=True)]
    tokens = asked.completion.tokens
    return generate(server.model_dir, asked.prompt, asked.pictures, told, tokens)


def chosen_in(report: dict[str, Any]) -> dict[str, Any]:
    """The heads that a report says were chosen: of two that are as good the reference takes the same."""
    heads = report.get("chosen_heads")
    return {} if heads is None else {"chosen": {int(layer): ids for layer, ids in heads.items()}}


def assert_vision_conforms(server: LiveServer, asked: Asked, edits: Edits) -> None:
    """Equal greedy tokens, but for near-ties, and log-probabilities."""
    expected = vision_reference(server, asked, edits)
    done = asked.completion
    for i, best in enumerate(expected.best_tokens):
        gap = expected.best_logprobs[i] - expected.token_logprobs[i]
        assert done.tokens[i] == best or gap < NEAR_TIE, f"{edits}: token {i} by {gap:.2g}"
    # A model that has not learned to read its pictures calls its own prompt unlikely, with log-probabilities
    # down to -20, whose float32 is coarser.
    tolerance = TOLERANCE if trained_model() is not None else 2 * TOLERANCE
    assert_close(
        [*done.prompt_logprobs, *done.logprobs],
        [*expected.prompt_logprobs[: len(done.prompt_logprobs)], *expected.token_logprobs],
        tolerance,
        str(edits),
    )


def moved(server: LiveServer, asked: Asked, edits: Edits) -> float:
    """How far the edits move any log-probability, by the reference."""
    edited = vision_reference(server, asked, edits)
    plain = vision_reference(server, asked, [])
    return largest_difference(edited.token_logprobs, plain.token_logprobs)[0]
