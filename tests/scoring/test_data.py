"""Data of a calibration: what can be read, and what is refused with its line."""

import asyncio
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.scoring.stand_in import StandIn, two_way

from heed_server.scoring.data import (
    Item,
    by_task,
    drawn,
    read_items,
    task_file,
    task_files,
)
from heed_server.scoring.errors import ScoringError
from heed_server.scoring.prompts import prepare

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
        (GOOD | {"question": "Is it?"}, "either a prompt or messages"),
        (GOOD | {"image": "data:image/png;base64,"}, "beside a question"),
        ({"question": "Is it?", "image": "none.png"}, "cannot be read"),
        ({"question": "Is it?", "image": "mine.jsonl"}, "no image by its name"),
        ({"question": "Is it?", "image": "none.zip/1.png"}, "cannot be read"),
        (GOOD | {"objects": "star"}, "objects must be a list"),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_used_is_named_by_its_number(
    tmp_path: Path, line: Any, words: str
) -> None:
    with pytest.raises(ScoringError, match=r"mine\.jsonl, line 2: ") as error:
        read_items(write(tmp_path, GOOD, line, GOOD))
    assert words in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match=r"none\.jsonl"):
        read_items(tmp_path / "none.jsonl")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_a_file_without_items_is_told_as_such(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(ScoringError, match="no items"):
        read_items(tmp_path / "mine.jsonl")


def test_two_files_cannot_be_one_task(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "train.jsonl", tmp_path / "b" / "train.jsonl"]
    assert by_task(files[:1]) == {"train": files[0]}
    with pytest.raises(ScoringError, match="both be the task train"):
        by_task(files)


@pytest.mark.parametrize("task", ["sentiment", "topic", "emphasis", "recall"])
def test_the_bundled_sets_can_be_read(task: str) -> None:
    items = read_items(task_file(task))
    assert len(items) >= 300 and all(item.answer and item.task == task for item in items)


def test_an_unknown_set_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ScoringError, match="sentiment"):
        task_file("sentimint")


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
    client = StandIn(lambda *_: two_way(0.5))
    plain, chat = asyncio.run(
        prepare(
            client,
            [item(), item(prompt=None, messages=({"role": "user", "content": "Is it?"},))],
        )
    )
    assert [bytes(choice).decode() for choice in plain.choices] == ["yes", "no"]
    assert bytes(plain.prompt).decode() == "Is it? " and plain.right == 1
    (unwanted,) = asyncio.run(prepare(client, [item()], choices=False))
    assert (unwanted.prompt, unwanted.choices, unwanted.right) == (plain.prompt, (), None)
    assert bytes(chat.prompt).decode() == "[Is it?]["
    assert [bytes(choice).decode() for choice in chat.choices] == ["yes", "no"]


def test_a_choice_that_cannot_be_tokenised_apart_from_the_prompt_names_its_line() -> None:
    with pytest.raises(ScoringError, match=r"line 7: the choice 'yes' cannot be tokenised"):
        asyncio.run(prepare(Merging(lambda *_: two_way(0.5)), [item()]))


def test_an_image_is_a_url_or_a_file_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(b"one")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("two/2.jpg", b"two")
    named = {
        "pictures/1.png": "data:image/png;base64,b25l",
        "more.zip/two/2.jpg": "data:image/jpeg;base64,dHdv",
        "data:image/png;base64,AA==": "data:image/png;base64,AA==",
        "https://example.org/3.png": "https://example.org/3.png",
    }
    lines = [{"question": "Is it?", "image": name, "answer": "yes"} for name in named]
    for found, url in zip(read_items(write(tmp_path, *lines)), named.values(), strict=True):
        assert found.has_images
        (turn,) = found.chat()
        assert turn["content"] == [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Is it?"},
        ]
        assert found.chat("ye")[1:] == [{"role": "assistant", "content": "ye"}]


def test_a_question_without_an_image_is_a_turn_of_text(tmp_path: Path) -> None:
    (found,) = read_items(write(tmp_path, {"question": "Is it?"}))
    assert found.messages == ({"role": "user", "content": "Is it?"},) and not found.has_images


def test_a_limit_draws_the_same_items_each_time() -> None:
    items = [item(prompt=f"{number}? ") for number in range(20)]
    assert len(drawn(items, seed=1, limit=5)) == 5
    assert drawn(items, seed=1, limit=5) == drawn(items, seed=1, limit=9)[:5]
    assert drawn(items, seed=1, limit=5) != drawn(items, seed=2, limit=5)


def test_only_sets_with_answers_are_tasks() -> None:
    tasks = task_files("heed-tiny")
    assert {"sentiment", "recall", "copy"} <= set(tasks) and "long_text" not in tasks
    assert task_files("a/model") == {}
