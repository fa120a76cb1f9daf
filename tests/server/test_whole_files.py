"""Files that appear whole: what is read is the old one or the new one, also after a full disk or a power cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.profile_maker import document

from heed_server.profiles.profile import Profile
from heed_server.profiles.writing import write_profile
from heed_server.whole_files import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    for text in ("first", "zweitens: \u00fc"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    write_whole(path, "whole")

    def full(descriptor: int) -> None:
        raise OSError("no space is left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "half")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_goes_on_leading_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "elsewhere" / "found.json"
    link.symlink_to(target)
    for text in ("first", "second"):
        write_whole(link, text)
        assert link.is_symlink() and target.read_text() == text


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "said")
    assert os.read(reader, 99) == b"said" and pipe.is_fifo()
    os.close(reader)


def test_all_of_a_profile_is_on_the_disk_before_it_has_its_name_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, seen = os.fsync, list[tuple[str, bool]]()

    def noted(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((path.name, (tmp_path / "sentiment").exists()))
        stock(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    content: dict[str, Any] = document(tensors={"vectors": [2, 2]})
    profile = Profile.model_validate(content)
    write_profile(tmp_path, profile, {"vectors": np.ones((2, 2), np.float32)})
    before = [name for name, named in seen if not named]
    assert set(before[:2]) == {"profile.json", "tensors.safetensors"}
    assert before[2].startswith(".sentiment.") and len(before) == 3
    assert seen[3:] == [(tmp_path.name, True)]
