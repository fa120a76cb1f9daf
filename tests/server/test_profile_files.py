"""Profiles on disk: what is read, what is refused and why, and that nothing is ever half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.server.profile_maker import document, put

from heed_server.profiles import writing
from heed_server.profiles.profile import Profile, ProfileError, read_profile
from heed_server.profiles.store import profile_names
from heed_server.profiles.writing import write_profile


def refusal(root: Path, name: str = "sentiment") -> str:
    with pytest.raises(ProfileError) as error:
        read_profile(root, name)
    return str(error.value)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    weights = {"vectors": np.ones((4, 8, 16), np.float32)}
    written = Profile.model_validate(document() | {"tensors": {"vectors": [4, 8, 16]}})
    assert write_profile(tmp_path, written, weights) == tmp_path / "sentiment"
    assert read_profile(tmp_path, "sentiment") == written
    stored = json.loads((tmp_path / "sentiment" / "profile.json").read_text())
    assert stored["schema"] == 1 and stored["model"]["fingerprint"].startswith("heed1:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ('{"schema": 1, "name": "senti', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "the document"),
        (json.dumps(document(schema=2)), "newer"),
        (json.dumps(document(schema="1")), "schema"),
        (json.dumps(document(name="other")), "'other'"),
        (json.dumps(document(parameters=[])), "parameters"),
        (json.dumps(document(extra=1)), "extra"),
        (json.dumps(document(model={"id": "x"})), "model.architecture"),
        (json.dumps(document(evaluation={"gain": float("nan")})), "NaN"),
        (json.dumps(document(evaluation={"gain": 5})).replace("5}", "1e999}"), "1e999"),
        (json.dumps(document(evaluation={"note": "\ud800"})), "not valid JSON"),
        (json.dumps(document(schema=True)), "schema"),
        (json.dumps(document(schema=1.0)), "schema"),
    ],
)
def test_a_damaged_document_is_refused_and_what_is_wrong_is_named(
    tmp_path: Path, text: str, words: str
) -> None:
    put(tmp_path, text=text)
    assert words in refusal(tmp_path)


def test_a_truncated_tensor_file_is_refused(tmp_path: Path) -> None:
    directory = put(tmp_path, tensors={"vectors": [4, 16]})
    save_file({"vectors": np.ones((4, 16), np.float32)}, directory / "tensors.safetensors")
    assert read_profile(tmp_path, "sentiment").tensors == {"vectors": [4, 16]}
    whole = (directory / "tensors.safetensors").read_bytes()
    (directory / "tensors.safetensors").write_bytes(whole[:-8])
    assert "damaged" in refusal(tmp_path)


def test_tensors_are_those_that_the_document_lists(tmp_path: Path) -> None:
    directory = put(tmp_path, tensors={"vectors": [4, 16]})
    assert "there is no tensors.safetensors" in refusal(tmp_path)
    save_file({"vectors": np.ones((4, 8), np.float32)}, directory / "tensors.safetensors")
    assert "does not hold" in refusal(tmp_path)
    put(tmp_path, "bare")
    save_file({"vectors": np.ones(2, np.float32)}, tmp_path / "bare" / "tensors.safetensors")
    assert "does not hold" in refusal(tmp_path, "bare")


@pytest.mark.parametrize("name", ["", ".", "..", "../sentiment", "a/b", ".hidden", "x" * 65, "a\n"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / "inside")
    assert "no name of a profile" in refusal(tmp_path / "inside", name)


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "outside")
    root = tmp_path / "profiles"
    root.mkdir()
    (root / "sentiment").symlink_to(tmp_path / "outside" / "sentiment")
    assert "outside" in refusal(root)


def test_a_profile_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(writing, "save_file", fail)
    profile = Profile.model_validate(document() | {"tensors": {"x": [1]}})
    with pytest.raises(OSError, match="no space"):
        write_profile(tmp_path, profile, {"x": np.ones(1, np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_a_profile_stays_when_the_one_that_replaces_it_does_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path, Profile.model_validate(document()))
    rename = Path.rename

    def fail_to_arrive(self: Path, target: Path) -> Path:
        if target.name == "sentiment" and not self.name.endswith(".old"):
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_arrive)
    other = Profile.model_validate(document(parameters={"gamma": 3.0}))
    with pytest.raises(OSError, match="disk trouble"):
        write_profile(tmp_path, other, replace=True)
    assert read_profile(tmp_path, "sentiment").parameters["gamma"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["sentiment"]


def test_a_folder_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / ".other.a1b2").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert profile_names(tmp_path) == ["sentiment"]


def test_a_profile_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_profile(tmp_path, Profile.model_validate(document()))
    other = Profile.model_validate(document(parameters={"gamma": 3.0}))
    with pytest.raises(ProfileError, match="already"):
        write_profile(tmp_path, other)
    write_profile(tmp_path, other, replace=True)
    assert read_profile(tmp_path, "sentiment") == other
    assert [path.name for path in tmp_path.iterdir()] == ["sentiment"]
