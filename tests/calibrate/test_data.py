"""Data of a calibration: what can be read, and what is refused with its line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.calibrate.stand_in import StandIn, two_way

from heed_server.calibrate.data import Item, by_task, read_items, split, task_file
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.prompts import prepare

GOOD = {"prompt": "Good or bad? ", "choices": ["good", "bad"], "answer": "good"}


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "mine.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ('{"prompt": "x"', "JSON"),
        ("[" * 50_000, "JSON"),
        ("[]", "object"),
        ({"choices": ["a", "b"]}, "either a prompt or messages"),
        (GOOD | {"messages": []}, "either a prompt or messages"),
        (GOOD | {"prompt": ""}, "not empty"),
        ({"messages": [{"role": "user"}]}, "role and a content"),
        (GOOD | {"choices": ["good"]}, "two or more"),
        (GOOD | {"choices": ["good", "good"]}, "all different"),
        (GOOD | {"choices": ["good", ""]}, "not empty"),
        (GOOD | {"answer": "fair"}, "none of the choices"),
        (GOOD | {"answer": 1}, "must be a text"),
        (GOOD | {"emphasise": "absent"}, "does not stand in the prompt"),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_used_is_named_by_its_number(
    tmp_path: Path, line: Any, words: str
) -> None:
    with pytest.raises(CalibrationError, match=r"mine\.jsonl, line 2: ") as error:
        read_items(write(tmp_path, GOOD, line, GOOD))
    assert words in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.jsonl"):
        read_items(tmp_path / "none.jsonl")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_a_file_without_items_is_told_as_such(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(CalibrationError, match="no items"):
        read_items(tmp_path / "mine.jsonl")


def test_two_files_cannot_be_one_task(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "train.jsonl", tmp_path / "b" / "train.jsonl"]
    assert by_task(files[:1]) == {"train": files[0]}
    with pytest.raises(CalibrationError, match="both be the task train"):
        by_task(files)


@pytest.mark.parametrize("task", ["sentiment", "topic", "emphasis", "recall"])
def test_the_bundled_sets_can_be_read(task: str) -> None:
    items = read_items(task_file(task))
    assert len(items) >= 300 and all(item.answer and item.task == task for item in items)


def test_an_unknown_set_is_refused_with_those_that_exist() -> None:
    with pytest.raises(CalibrationError, match="sentiment"):
        task_file("sentimint")


def test_parts_share_no_item_and_follow_the_seed(tmp_path: Path) -> None:
    items = read_items(write(tmp_path, *(GOOD | {"prompt": f"{n}? "} for n in range(40))))
    swept, kept = split(items, seed=1, limit=30, held_out=0.4)
    assert (len(swept), len(kept)) == (18, 12)
    assert not {item.prompt for item in swept} & {item.prompt for item in kept}
    assert split(items, seed=1, limit=30, held_out=0.4) == (swept, kept)
    assert split(items, seed=2, limit=30, held_out=0.4) != (swept, kept)
    with pytest.raises(CalibrationError, match="empty"):
        split(items, seed=1, limit=1, held_out=0.5)


def test_a_prompt_that_stands_twice_is_on_one_side(tmp_path: Path) -> None:
    lines = [GOOD | {"prompt": f"{n % 12}? ", "answer": ("good", "bad")[n % 2]} for n in range(40)]
    items = read_items(write(tmp_path, *lines))
    for seed in range(5):
        swept, kept = split(items, seed=seed, limit=None, held_out=0.2)
        assert not {item.prompt for item in swept} & {item.prompt for item in kept}
        assert len(swept) + len(kept) == 40
    with pytest.raises(CalibrationError, match="empty"):
        split([items[0]] * 4, seed=0, limit=None, held_out=0.5)


def item(**fields: Any) -> Item:
    blank: dict[str, Any] = {"task": "t", "where": "mine.jsonl, line 7", "prompt": "Is it? "}
    blank |= {"messages": None, "choices": ("yes", "no"), "answer": "no"}
    return Item(**(blank | fields))


class Merging(StandIn):
    """A tokenizer that draws a space and the letter after it together."""

    async def tokens(self, body: Any) -> tuple[int, ...]:
        plain = await super().tokens(body)
        return tuple(map(ord, "".join(map(chr, plain)).replace(" y", "Y")))


def test_choices_are_the_tokens_that_they_add_to_the_prompt() -> None:
    plain, chat = asyncio.run(
        prepare(
            StandIn(lambda *_: two_way(0.5)),
            [item(), item(prompt=None, messages=({"role": "user", "content": "Is it?"},))],
        )
    )
    assert [bytes(choice).decode() for choice in plain.choices] == ["yes", "no"]
    assert bytes(plain.prompt).decode() == "Is it? " and plain.right == 1
    assert bytes(chat.prompt).decode() == "[Is it?]["
    assert [bytes(choice).decode() for choice in chat.choices] == ["yes", "no"]


def test_a_choice_that_cannot_be_tokenised_apart_from_the_prompt_names_its_line() -> None:
    with pytest.raises(CalibrationError, match=r"line 7: the choice 'yes' cannot be tokenised"):
        asyncio.run(prepare(Merging(lambda *_: two_way(0.5)), [item()]))
