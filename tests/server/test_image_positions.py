"""Where the images of a rendered prompt lie, in the shapes that vLLM gives for different models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.multimodal.inputs import PlaceholderRange

from heed_interventions.views import ImageSpan
from heed_server.engine.model import image_positions
from heed_server.engine.model.image_positions import image_spans, takes_images


def marked(offset: int, marks: str) -> PlaceholderRange:
    """A placeholder whose token i takes an embedding where `marks[i]` is x."""
    return PlaceholderRange(
        offset=offset, length=len(marks), is_embed=torch.tensor([mark == "x" for mark in marks])
    )


def spans(**placeholders: Any) -> tuple[ImageSpan, ...]:
    return image_spans({"prompt_token_ids": [1] * 200, "mm_placeholders": placeholders})


def test_a_text_has_no_images() -> None:
    assert image_spans({"prompt_token_ids": [1, 2]}) == ()
    assert spans() == ()


def test_a_placeholder_without_a_mask_is_all_image() -> None:
    assert spans(image=[PlaceholderRange(offset=2, length=64)]) == (ImageSpan(2, 66, ((2, 66),)),)


def test_markers_of_rows_and_of_the_end_are_no_visual_keys() -> None:
    assert spans(image=[marked(5, "-xx-xx-")]) == (ImageSpan(5, 12, ((6, 8), (9, 11))),)


def test_images_and_frames_stand_in_the_order_of_their_positions() -> None:
    found = spans(
        image=[PlaceholderRange(offset=40, length=4), PlaceholderRange(offset=3, length=4)],
        video=[marked(20, "x-x")],
        audio=[PlaceholderRange(offset=60, length=9)],
    )
    assert found == (
        ImageSpan(3, 7),
        ImageSpan(20, 23, ((20, 21), (22, 23))),
        ImageSpan(40, 44),
    )


def test_a_placeholder_that_takes_no_embedding_is_no_image() -> None:
    assert spans(image=[marked(4, "---"), PlaceholderRange(offset=9, length=0)]) == ()


@pytest.mark.parametrize(
    ("supported", "limits", "takes"),
    [
        ({"image": None}, {}, True),
        ({"image": None}, {"image": 0}, False),
        ({"image": None, "video": 1}, {"image": 0}, True),
        ({"audio": None}, {}, False),
        (None, {}, False),
    ],
)
def test_a_model_takes_images_where_its_processor_and_the_server_s_limits_do(
    monkeypatch: pytest.MonkeyPatch,
    supported: dict[str, int | None] | None,
    limits: dict[str, int],
    takes: bool,
) -> None:
    def info(config: Any) -> Any:
        if supported is None:
            raise ValueError("no processor")
        return SimpleNamespace(supported_mm_limits=supported)

    registry = SimpleNamespace(get_processing_info=info)
    monkeypatch.setattr(image_positions, "MULTIMODAL_REGISTRY", registry)
    multimodal = SimpleNamespace(get_limit_per_prompt=lambda name: limits.get(name, 999))
    config: Any = SimpleNamespace(is_multimodal_model=True, multimodal_config=multimodal)
    assert takes_images(config) is takes


def test_a_text_model_takes_none() -> None:
    config: Any = SimpleNamespace(is_multimodal_model=False, multimodal_config=None)
    assert not takes_images(config)
