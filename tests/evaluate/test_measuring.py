"""From items and settings to tables, a document and a plot, on a server that is a rule."""

import asyncio
import io
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.scoring.stand_in import Rule, StandIn, two_way

from heed_server.evaluate.forest import forest
from heed_server.evaluate.measuring import Measured, measured
from heed_server.evaluate.report import Found, compared_with_none, of_items, tables
from heed_server.evaluate.tasks import Task, kind_of
from heed_server.progress import Progress
from heed_server.scoring.calls import PLAIN, Setting
from heed_server.scoring.data import Item
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.prompts import prepare
from heed_server.scoring.scorer import Scorer

SETTINGS: dict[str, Setting] = {
    "none": PLAIN,
    "helps": [{"method": "zerotuning", "gamma": 2.0}],
    "<nothing>": [{"method": "zerotuning", "gamma": 1.0}],
}
ITEMS = 40


def rule(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
    """Right on the even items, and under gamma 2 on six of the others."""
    number = int(bytes(prompt).decode().split(":")[0])
    mended = any(edit["gamma"] == 2 for edit in edits) and number < 12
    return two_way(0.8 if number % 2 == 0 or mended else 0.3)


def item(number: int, **fields: Any) -> Item:
    blank: dict[str, Any] = {"choices": ("p", "n"), "answer": "p"} | fields
    return Item("t", f"t.jsonl, line {number}", f"{number}: is it? ", None, **blank)


def run(answers: Rule, *, score: str = "auto", **fields: Any) -> Any:
    client, progress = StandIn(answers), Progress(io.StringIO())

    async def found() -> Any:
        prepared = await prepare(client, [item(number, **fields) for number in range(ITEMS)])
        tasks = {"t": Task(prepared, kind_of(prepared, score))}
        scorer = Scorer(client, batch=16, most_tokens=4, answered=progress.answered)
        return tasks, await measured(scorer, progress, tasks, SETTINGS)

    return asyncio.run(found())


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, Task], dict[str, dict[str, Measured]]]:
    found: tuple[dict[str, Task], dict[str, dict[str, Measured]]] = run(rule)
    return found


@pytest.fixture(scope="module")
def compared(both: Any) -> Found:
    return compared_with_none(*both, seed=0)


def test_every_setting_is_compared_with_none_on_the_same_items(compared: Found) -> None:
    settings = compared["t"]["settings"]
    assert list(settings) == list(SETTINGS) and compared["t"]["scored"] == "choices"
    plain, helps, nothing = (each["measures"]["accuracy"] for each in settings.values())
    assert plain["value"][0] == 0.5 and helps["value"][0] == 0.65
    mean, low, high = helps["difference"]
    assert mean == 0.15 and 0 < low < 0.15 < high
    assert (helps["mended"], helps["spoiled"], helps["p"]) == (6, 0, 0.0312)
    assert nothing["difference"] == [0, 0, 0] and nothing["p"] == 1
    assert settings["helps"]["measures"]["likelihood"]["difference"][0] > 0
    assert set(settings["none"]["measures"]) == {"accuracy", "likelihood"}
    assert all(each["items_per_second"] > 0 for each in settings.values())


def test_the_tables_have_a_line_for_each_setting(compared: Found) -> None:
    first, second = tables(compared).split("\n\n")
    assert first.splitlines()[0] == (
        "| task | items | by | setting | accuracy [95 %] | difference [95 %] | mended, spoiled | p "
        "| items/s |"
    )
    assert "| t | 40 | choices | helps | 0.650 [" in first and "| 6, 0 | 0.031 |" in first
    assert "| t | likelihood | helps | " in second
    assert [len(line.split(" | ")) for line in first.splitlines()] == [9] * 5


def test_every_item_has_what_was_said_about_it(both: Any) -> None:
    found = of_items(*both)["t"]
    assert found[1] == {
        "where": "t.jsonl, line 1",
        "settings": {
            "none": {"said": "n", "right": False},
            "helps": {"said": "p", "right": True},
            "<nothing>": {"said": "n", "right": False},
        },
    }


def test_the_plot_is_a_picture_with_a_mark_for_each_setting(compared: Found) -> None:
    root = ElementTree.fromstring(forest(compared))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 5
    words = [text.text for text in root.findall(f"{space}text")]
    assert "t: accuracy, 40 items" in words and "<nothing>" in words


def test_texts_are_compared_where_a_choice_has_several_tokens() -> None:
    tasks, found = run(rule, choices=("p", "no"))
    assert tasks["t"].kind == "text"
    measures = found["t"]["helps"].measures(tasks["t"])
    assert set(measures) == {"accuracy"} and measures["accuracy"].value == 0.65
    tasks, _ = run(rule, choices=("p", "no"), score="choices")
    assert tasks["t"].kind == "choices"


def test_captions_need_no_answer() -> None:
    tasks, found = run(rule, choices=(), answer=None, objects=("p",))
    compared = compared_with_none(tasks, found, seed=0)
    assert list(compared["t"]["settings"]["none"]["measures"]) == [
        "CHAIR_S", "CHAIR_I", "recall", "words",
    ]  # fmt: skip
    assert tables(compared).startswith("| task | measure | setting | ")
    assert "t: CHAIR_S, 40 items" in forest(compared)
    assert of_items(tasks, found)["t"][0]["settings"]["none"] == {"said": "p", "right": None}


def test_a_line_without_choices_is_named_where_they_are_asked_for() -> None:
    with pytest.raises(ScoringError, match=r"t\.jsonl, line 0: there are no choices"):
        run(rule, choices=(), score="choices")


def test_a_setting_that_the_server_refuses_is_named_before_anything_is_measured() -> None:
    class Refusing(StandIn):
        async def complete(self, body: Any) -> list[dict[str, Any]]:
            if any(edit["gamma"] == 2 for edit in body["interventions"]):
                raise ScoringError("answered with 400")
            return await super().complete(body)

    client, progress = Refusing(rule), Progress(io.StringIO())

    async def found() -> Any:
        prepared = await prepare(client, [item(number) for number in range(ITEMS)])
        scorer = Scorer(client, batch=16, most_tokens=4, answered=progress.answered)
        return await measured(scorer, progress, {"t": Task(prepared, "choices")}, SETTINGS)

    with pytest.raises(ScoringError, match="helps: answered with 400"):
        asyncio.run(found())
    assert client.prompts == 1
