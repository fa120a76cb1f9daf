"""A disk that is full while a profile is written: an error, and nothing half-written."""

import multiprocessing
import resource
import signal
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
from tests.server.profile_maker import document

from heed_server.profiles.profile import Profile, read_profile
from heed_server.profiles.store import profile_names
from heed_server.profiles.writing import write_profile

ROOM = 4096
"""Bytes that a file may have in the process that writes: what a full disk is to it."""


def write_with_little_room(root: Path, answer: "Queue[str]") -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
    profile = Profile.model_validate(document(tensors={"vectors": [64, 64]}))
    try:
        write_profile(root, profile, {"vectors": np.ones((64, 64), np.float32)}, replace=True)
    except Exception as error:
        answer.put(f"{type(error).__name__}: {error}")
    else:
        answer.put("written")


def outcome(root: Path) -> str:
    context = multiprocessing.get_context("fork")
    answer: Queue[str] = context.Queue()
    process = context.Process(target=write_with_little_room, args=(root, answer))
    process.start()
    said = answer.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0
    return said


def test_a_profile_that_does_not_fit_on_the_disk_is_not_there(tmp_path: Path) -> None:
    assert "too large" in outcome(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_stays_as_it_was_when_its_successor_does_not_fit(tmp_path: Path) -> None:
    write_profile(tmp_path, Profile.model_validate(document()))
    assert "too large" in outcome(tmp_path)
    assert profile_names(tmp_path) == ["sentiment"]
    assert read_profile(tmp_path, "sentiment").tensors == {}
    assert [path.name for path in tmp_path.iterdir()] == ["sentiment"]
