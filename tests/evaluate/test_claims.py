"""POPE's and CHAIR's measures, by hand."""

from typing import Any

import pytest

from heed_server.evaluate.claims import claims_of
from heed_server.scoring.data import Item


def items(*fields: dict[str, Any]) -> list[Item]:
    return [Item("t", "line", "Is it?", None, **each) for each in fields]


def values(made: list[Item], said: list[str]) -> dict[str, float]:
    return {name: round(each.value, 4) for name, each in claims_of(made, said).items()}


def test_yes_is_the_claim_in_questions_of_yes_and_no() -> None:
    asked = items(*({"choices": ("no", "yes"), "answer": each} for each in "yes no yes no".split()))
    assert values(asked, ["yes", "yes", "no", "perhaps"]) == {
        "said yes": 0.5, "precision": 0.5, "recall": 0.5, "F1": 0.5,
    }  # fmt: skip
    assert values(asked, ["yes", "no", "yes", "no"])["F1"] == 1
    assert set(values(asked, ["no"] * 4).values()) == {0}


def test_captions_are_measured_by_the_absent_objects_that_they_name() -> None:
    shown = items({"objects": ("star",)}, {"objects": ("cup", "key")}, {"objects": ("fish",)})
    said = ["I see a red Star and two blue keys.", "I see a cup, a cup. I also see a key.", ""]
    assert values(shown, said) == {
        "CHAIR_S": 0.3333, "CHAIR_I": 0.25, "recall": 0.75, "words": 6.6667,
    }  # fmt: skip
    assert values(shown, ["", "", ""])["CHAIR_I"] == 0


def test_the_longer_name_is_meant_where_one_begins_another() -> None:
    shown = items({"objects": ("bus", "bus stop")}, {"objects": ("bus",)})
    assert values(shown, ["two buses", "a bus stop"])["CHAIR_S"] == 0.5


@pytest.mark.parametrize(
    "mixed",
    [
        items({"choices": ("yes", "no", "perhaps"), "answer": "no"}),
        items({"objects": ("star",)}, {"answer": "yes"}),
        items({"objects": ()}),
    ],
)
def test_other_items_claim_nothing(mixed: list[Item]) -> None:
    assert claims_of(mixed, ["yes"] * len(mixed)) == {}
