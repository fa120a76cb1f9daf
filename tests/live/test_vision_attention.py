"""`POST /v1/attention` of prompts with images: what goes to the image, and what the image changes."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer
from vision_reference import VisionReference
from vision_server import QUESTIONS, message, picture


def decoded(encoded: dict[str, Any]) -> np.ndarray:
    """A tensor with `"encoding": "base64"`, as float64."""
    values = np.frombuffer(base64.b64decode(encoded["data"]), "<f4")
    return values.reshape(encoded["shape"]).astype(float)


def test_attention_to_an_image_is_that_to_its_keys(vision_server: LiveServer) -> None:
    body = {
        "model": vision_server.model, "messages": [message(QUESTIONS[0], [picture(9)])],
        "rows": [-1, -2], "include": ["attention", "mass", "vas"], "encoding": "base64",
    }  # fmt: skip
    response = vision_server.post("/v1/attention", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    (((start, end),),) = answer["images"]
    assert end - start == 64
    weights = decoded(answer["attention"])
    on_image = weights[..., start:end].sum(axis=-1)
    np.testing.assert_allclose(decoded(answer["mass"]["image"]), on_image, rtol=1e-5, atol=1e-7)
    ratio = on_image / weights[..., :start].sum(axis=-1)
    np.testing.assert_allclose(decoded(answer["vas"]["values"]), ratio, rtol=1e-4)
    assert answer["vas"]["mean"] == pytest.approx(ratio.mean(), rel=1e-4)
    body["messages"] = [{"role": "user", "content": QUESTIONS[0]}]
    refused = vision_server.post("/v1/attention", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include.2")


@pytest.mark.parametrize("pictures", [1, 2])
def test_vhd_is_how_far_heads_are_from_a_run_without_the_image(
    vision_server: LiveServer, pictures: int
) -> None:
    files = [picture(9 + number) for number in range(pictures)]
    body = {
        "model": vision_server.model, "messages": [message(QUESTIONS[1], files)],
        "include": ["vhd"], "encoding": "base64",
    }  # fmt: skip
    response = vision_server.post("/v1/attention", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    reference, prompt = VisionReference(vision_server.model_dir, files), answer["token_ids"]
    without = reference.without_images(prompt)
    assert len(prompt) - len(without) == 64 * pictures
    expected = [
        (seen - blind).norm(dim=-1).numpy()
        for seen, blind in zip(
            reference.last_outputs(prompt), reference.last_outputs(without), strict=True
        )
    ]
    found = decoded(answer["vhd"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found.max() > 0.01
    some = vision_server.post("/v1/attention", {**body, "layers": [2, 4], "heads": [5, 0]})
    np.testing.assert_allclose(decoded(some.json()["vhd"]), found[[2, 4]][:, [0, 5]], rtol=1e-5)
    body["messages"] = [{"role": "user", "content": QUESTIONS[1]}]
    refused = vision_server.post("/v1/attention", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include.0")


def test_vhr_chooses_the_heads_of_the_largest_vhd(vision_server: LiveServer) -> None:
    body = {
        "model": vision_server.model, "messages": [message(QUESTIONS[2], [picture(12)])],
        "include": ["vhd"], "interventions": [{"method": "vhr", "filter": False}],
    }  # fmt: skip
    answer = vision_server.post("/v1/attention", body).json()
    (report,) = answer["interventions"]
    assert report["companion"]["prompt_tokens"] == len(answer["token_ids"]) - 64
    assert len(report["chosen_heads"]) > 1
    for layer, chosen in report["chosen_heads"].items():
        farthest = np.argsort(answer["vhd"][int(layer)])[-len(chosen) :]
        assert sorted(farthest.tolist()) == chosen


def test_attention_is_shown_under_a_companion_s_choice(vision_server: LiveServer) -> None:
    body = {
        "model": vision_server.model, "messages": [message(QUESTIONS[0], [picture(9)])],
        "rows": [-1], "include": ["mass"], "interventions": [{"method": "vhr"}],
    }  # fmt: skip
    response = vision_server.post("/v1/attention", body)
    assert response.status_code == 200, response.text
    (report,) = response.json()["interventions"]
    assert report["chosen_heads"] and report["companion"]["prompt_tokens"]
