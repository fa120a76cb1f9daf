"""Items cut in two: no prompt on both sides, and neither side empty."""

import pytest

from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.parts import split
from heed_server.scoring.data import Item


def item(prompt: str, answer: str = "good") -> Item:
    return Item("mine", "line", prompt, None, ("good", "bad"), answer)


def test_parts_share_no_item_and_follow_the_seed() -> None:
    items = [item(f"{number}? ") for number in range(40)]
    swept, kept = split(items, seed=1, limit=30, held_out=0.4)
    assert (len(swept), len(kept)) == (18, 12)
    assert not {item.prompt for item in swept} & {item.prompt for item in kept}
    assert split(items, seed=1, limit=30, held_out=0.4) == (swept, kept)
    assert split(items, seed=2, limit=30, held_out=0.4) != (swept, kept)
    with pytest.raises(CalibrationError, match="empty"):
        split(items, seed=1, limit=1, held_out=0.5)


def test_a_prompt_that_stands_twice_is_on_one_side() -> None:
    items = [item(f"{number % 12}? ", ("good", "bad")[number % 2]) for number in range(40)]
    for seed in range(5):
        swept, kept = split(items, seed=seed, limit=None, held_out=0.2)
        assert not {item.prompt for item in swept} & {item.prompt for item in kept}
        assert len(swept) + len(kept) == 40
    with pytest.raises(CalibrationError, match="empty"):
        split([items[0]] * 4, seed=0, limit=None, held_out=0.5)
