"""Keys of patches in the worker: ranges take their place, the report tells them, and the tower is asked once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heed_kernels.beside.patches import ClassAttention
from heed_kernels.edits import OPEN, Edit, HeadSet, KeyBias, KeyRanges, KeyScale, PatchKeys, Rows
from heed_kernels.errors import EditError
from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.patch_keys import with_patches
from heed_server.engine.model import image_tower
from heed_server.engine.model.image_tower import ClassToken, patches_of, tower_obstacle
from heed_server.engine.payload import Payload

ON, ROWS, IMAGE = HeadSet((1,)), Rows(19, OPEN), KeyRanges(((3, 11),))
PAINT: tuple[Edit, ...] = (
    KeyScale(ON, ROWS, PatchKeys(IMAGE, False, 2), 1.0, 0.7, 1),
    KeyBias(ON, ROWS, KeyRanges(((0, 1),)), 0.5, 0),
    KeyScale(ON, ROWS, PatchKeys(IMAGE, True, 2), 1.0, 0.3, 1),
)
FIRST = np.array([5, 0, 0, 0, 4, 0, 0, 9], np.float32)
FAR = np.array([1, 1, 1, 1, 1, 1, 1, 8], np.float32)


def payload(detailed: tuple[int, ...] = ()) -> Payload:
    return Payload("r", 1, 20, 19, PAINT, detailed)


def seen(later: Any) -> Any:
    asked: list[Any] = []

    def attention(features: Any) -> list[ClassAttention]:
        asked.append(features)
        return [ClassAttention(FIRST, later)]

    return attention, asked


def test_ranges_take_the_place_of_patches_and_the_report_tells_them() -> None:
    attention, asked = seen(FAR)
    found, told = with_patches(payload(detailed=(1,)), attention, ["picture"])
    assert [edit.keys for edit in found.edits] == [  # type: ignore[union-attr]
        KeyRanges(((3, 4),)),
        KeyRanges(((0, 1),)),
        KeyRanges(((10, 11),)),
    ]
    assert told == {
        1: {
            "patches": {"local": 1, "summary": 1},
            "patch_keys": {"local": [3], "summary": [10]},
        }
    }
    assert asked == [["picture"]]
    _, told = with_patches(payload(), attention, ["picture"])
    assert told == {1: {"patches": {"local": 1, "summary": 1}}}


def test_a_summary_of_nothing_is_no_edit() -> None:
    attention, _ = seen(np.ones(8, np.float32))
    found, told = with_patches(payload(), attention, [])
    assert len(found.edits) == 2
    assert told[1]["patches"] == {"local": 2, "summary": 0}


def test_the_tower_is_not_asked_for_other_edits() -> None:
    attention, asked = seen(FAR)
    other = Payload("r", 1, 20, 19, PAINT[1:2])
    assert with_patches(other, attention, ["picture"]) == (other, {})
    assert asked == []


def test_a_request_gets_its_keys_again_after_a_preemption_and_an_error_into_its_report() -> None:
    requests = EditedRequests(EditTable(slots=2, layers=1, query_heads=1, kv_heads=1))
    requests.class_attention, asked = seen(FAR)
    for _ in range(2):
        requests.enter("a", payload(), 0, features=["picture"])
        requests.leave("a", finished=False)
    assert asked == [["picture"]] * 2
    requests.enter("a", payload(), 0, features=["picture"])
    requests.leave("a", finished=True)
    report = requests.take(["r"])["r"][0]["interventions"][1]
    assert report["told"] == {"patches": {"local": 1, "summary": 1}}

    def broken(features: Any) -> list[ClassAttention]:
        raise EditError("an image came without its pixels")

    requests.class_attention = broken
    requests.enter("a", payload(), 0, features=["picture"])
    assert requests.take_failed() == ["a"]
    assert requests.take(["r"])["r"][0]["failure"] == "an image came without its pixels"


WIDTH, HEADS, PATCHES, LAYERS = 8, 2, 4, 4


class Attention(nn.Module):
    """As vLLM's `CLIPAttention`, with an output of its own."""

    def __init__(self, ranks: int = 1) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.head_dim, self.scale, self.tp_size = WIDTH // HEADS, 0.5, ranks

    def qkv_proj(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.project(hidden), None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.qkv_proj(hidden_states)[0][..., :WIDTH]
        return result


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = hidden + self.self_attn(hidden_states=hidden)
        return result


class Tower(nn.Module):
    """As vLLM's `CLIPVisionModel`: pixels are the embeddings themselves."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList([Layer() for _ in range(LAYERS - 1)])
        self.vision_model = nn.Module()
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = layers
        self.vision_model.config = SimpleNamespace(  # type: ignore[assignment]
            num_hidden_layers=LAYERS, image_size=16, patch_size=8
        )
        self.device, self.runs = torch.device("cpu"), 0

    def forward(self, pixels: torch.Tensor, feature_select_strategy: str) -> torch.Tensor:
        self.runs += 1
        for layer in self.vision_model.encoder.layers:
            pixels = layer(pixels)
        return pixels


class Llava(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self.config = SimpleNamespace(vision_feature_select_strategy="default")


@pytest.fixture
def llava(monkeypatch: pytest.MonkeyPatch) -> Llava:
    for name, kind in ("_LLAVA", Llava), ("_CLIP", Tower):
        monkeypatch.setattr(image_tower, name, f"{kind.__module__}.{kind.__qualname__}")
    torch.manual_seed(0)
    return Llava()


def config(adapted: bool = False) -> Any:
    lora = SimpleNamespace(enable_tower_connector_lora=True) if adapted else None
    return SimpleNamespace(lora_config=lora)


def feature(name: str, pixels: torch.Tensor | None) -> Any:
    data = None if pixels is None else {"pixel_values": SimpleNamespace(data=pixels)}
    return SimpleNamespace(identifier=name, data=data)


def test_a_class_token_s_attention_is_summed_over_heads_and_kept_by_image(llava: Llava) -> None:
    pixels = torch.randn(1 + PATCHES, WIDTH)
    token = ClassToken(llava, lambda local: local)
    first, again = token.attention([feature("one", pixels), feature("one", None)])
    assert first is again and llava.vision_tower.runs == 1
    hidden = pixels[None]
    expected = []
    with torch.no_grad():
        for layer in llava.vision_tower.vision_model.encoder.layers:
            query, key, _ = layer.self_attn.project(hidden)[0].view(-1, 3, HEADS, 4).unbind(1)
            weights = torch.einsum("hd,khd->hk", query[0], key).mul(0.5).softmax(1)
            expected.append(weights[:, 1:].sum(0).numpy())
            hidden = layer(hidden)
    np.testing.assert_allclose(first.first, expected[0], rtol=1e-5)
    np.testing.assert_allclose(first.later, expected[LAYERS - 2], rtol=1e-5)
    assert not llava.vision_tower.vision_model.encoder.layers[0].self_attn._forward_pre_hooks


def test_heads_of_other_ranks_are_gathered(llava: Llava) -> None:
    layers = llava.vision_tower.vision_model.encoder.layers
    pixels = torch.randn(1 + PATCHES, WIDTH)
    (alone,) = ClassToken(llava, lambda local: local).attention([feature("one", pixels)])
    for layer in layers:
        layer.self_attn.tp_size = 2
    twice = ClassToken(llava, lambda local: np.concatenate([local, local]))
    (both,) = twice.attention([feature("one", pixels)])
    np.testing.assert_allclose(both.first, 2 * alone.first)


def test_an_image_without_pixels_is_an_error(llava: Llava) -> None:
    with pytest.raises(EditError, match="without its pixels"):
        ClassToken(llava, lambda local: local).attention([feature("one", None)])


def test_the_image_asked_for_longest_ago_is_forgotten_first(
    llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_tower, "IMAGES_KEPT", 2)
    token, pixels = ClassToken(llava, lambda local: local), torch.randn(1 + PATCHES, WIDTH)
    token.attention([feature(name, pixels) for name in ("a", "b", "a", "c", "a", "b")])
    assert llava.vision_tower.runs == 4


def test_towers_that_cannot_be_read_say_why(llava: Llava) -> None:
    assert tower_obstacle(config(), llava) is None
    assert patches_of(llava) == PATCHES
    assert "adapter" in str(tower_obstacle(config(adapted=True), llava))
    llava.config.vision_feature_select_strategy = "full"
    assert "itself a token" in str(tower_obstacle(config(), llava))
    llava.config.vision_feature_select_strategy = "default"
    del llava.vision_tower.vision_model.encoder.layers[-1]
    assert "not in use" in str(tower_obstacle(config(), llava))
    llava.vision_tower = nn.Linear(2, 2)  # type: ignore[assignment]
    assert "no class token" in str(tower_obstacle(config(), llava))
    assert tower_obstacle(config(), nn.Linear(2, 2)) is not None
