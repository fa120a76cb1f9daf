"""Profiles damaged at random: each is read whole or refused with a reason, and nothing else happens."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tests.server.profile_maker import MODEL, VIEW, document, put

from heed_server.profiles.store import ProfileStore

SHAPE = [4, 16]
DOCUMENT = json.dumps(document(tensors={"vectors": SHAPE})).encode()
TENSORS = save({"vectors": np.ones(SHAPE, np.float32)})
HEADER = 8 + int.from_bytes(TENSORS[:8], "little")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("sentiment")
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, reach: int) -> bytes:
    """`whole` cut off, or with some of its first `reach` bytes changed, lost or doubled."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(reach, len(data))))
        match draw(st.sampled_from(["change", "lose", "add", "cut"])):
            case "change" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "lose":
                del data[at : at + draw(st.integers(1, 40))]
            case "add":
                data[at:at] = draw(st.binary(max_size=9)) or data[at : at + 40]
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def rewritten(draw: st.DrawFn) -> bytes:
    """A document that is JSON, with values of other types in it."""
    found: Any = json.loads(DOCUMENT)
    for _ in range(draw(st.integers(1, 3))):
        place = found
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)) | st.text(max_size=6))
            if not isinstance(place.get(key), dict) or draw(st.booleans()):
                place[key] = draw(anything)
                break
            place = place[key]
    return json.dumps(found).encode()


@contextmanager
def profile_of(document_bytes: bytes, tensors: bytes) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp())
    try:
        directory = put(root, text="")
        (directory / "profile.json").write_bytes(document_bytes)
        (directory / "tensors.safetensors").write_bytes(tensors)
        yield root
    finally:
        shutil.rmtree(root)


def assert_read_or_refused(document_bytes: bytes, tensors: bytes) -> None:
    with profile_of(document_bytes, tensors) as root:
        loaded = ProfileStore(root, MODEL, VIEW).loaded
    assert {*loaded.profiles, *loaded.refused} == {"sentiment"}
    assert len(loaded.profiles) + len(loaded.refused) == 1
    for reason in loaded.refused.values():
        assert 0 < len(reason) < 2000
        reason.encode()  # it is sent to clients


def test_the_profile_that_is_going_to_be_damaged_is_read() -> None:
    with profile_of(DOCUMENT, TENSORS) as root:
        assert not ProfileStore(root, MODEL, VIEW).loaded.refused


@settings(max_examples=300, deadline=None, derandomize=True)
@given(found=damaged(DOCUMENT, len(DOCUMENT)))
def test_damaged_documents(found: bytes) -> None:
    assert_read_or_refused(found, TENSORS)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(found=rewritten())
def test_documents_of_other_values(found: bytes) -> None:
    assert_read_or_refused(found, TENSORS)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(found=damaged(TENSORS, HEADER + 8))
def test_damaged_tensors(found: bytes) -> None:
    assert_read_or_refused(DOCUMENT, found)
