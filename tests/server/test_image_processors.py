"""LLaVA's imports where torchvision is missing."""

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from heed_server.engine.model import image_processors
from heed_server.engine.model.image_processors import (
    ON_PIL,
    ON_TORCHVISION,
    PilFinder,
    do_without_torchvision,
)


@pytest.fixture(autouse=True)
def finders_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [finder for finder in sys.meta_path if not isinstance(finder, PilFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.delitem(sys.modules, ON_TORCHVISION, raising=False)


def found() -> list[PilFinder]:
    return [finder for finder in sys.meta_path if isinstance(finder, PilFinder)]


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        image_processors, "find_spec", lambda each: None if each == name else find_spec(each)
    )


def test_the_processor_on_pil_goes_by_the_other_one_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    without("torchvision", monkeypatch)
    do_without_torchvision()
    alias, twin = import_module(ON_TORCHVISION), import_module(ON_PIL)
    assert alias.PixtralImageProcessor is twin.PixtralImageProcessorPil
    assert alias._num_image_tokens is twin._num_image_tokens
    assert alias.__name__ == ON_TORCHVISION


def test_it_is_put_in_place_once_and_finds_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    without("torchvision", monkeypatch)
    do_without_torchvision()
    do_without_torchvision()
    (finder,) = found()
    assert finder.find_spec(ON_PIL, None) is None
    assert finder.find_spec("json", None) is None


def test_an_installed_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_processors, "find_spec", lambda name: object())
    do_without_torchvision()
    assert found() == []


def test_a_transformers_without_the_twin_says_what_it_always_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(ON_PIL, monkeypatch)
    assert PilFinder().find_spec(ON_TORCHVISION, None) is None
