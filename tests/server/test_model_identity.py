"""A model's fingerprint: the same for the same model, another for any other."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from heed_server.models import bundled_model
from heed_server.profiles.identity import UnknownFilesError, fingerprint, model_directory

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "torch_dtype": "bfloat16"}


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(64, 48)).astype(np.float32) for name in "abc"}


def write(directory: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_how_a_model_is_stored_and_run_does_not_matter(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", weights(), torch_dtype="float32", transformers_version="9")
    parts = write(tmp_path / "parts", {"b": weights()["b"]})
    rest = {name: tensor for name, tensor in weights().items() if name != "b"}
    save_file(rest, parts / "model-2.safetensors", metadata={"format": "pt"})
    assert fingerprint(whole) == fingerprint(parts)


@pytest.mark.parametrize("change", ["weights", "shape", "name", "configuration"])
def test_another_model_has_another_fingerprint(tmp_path: Path, change: str) -> None:
    changed, config = weights(), {}
    if change == "weights":
        changed["b"] = changed["b"] + 1e-6
    elif change == "shape":
        changed["b"] = changed["b"].reshape(48, 64)
    elif change == "name":
        changed["d"] = changed.pop("c")
    else:
        config = {"rope_theta": 1.0}
    first = write(tmp_path / "first", weights())
    second = write(tmp_path / "second", changed, **config)
    assert fingerprint(first) != fingerprint(second)


def test_a_model_without_readable_files_has_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownFilesError):
        fingerprint(tmp_path)
    directory = write(tmp_path / "cut", weights())
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UnknownFilesError):
        fingerprint(directory)
    with pytest.raises(UnknownFilesError):
        model_directory("no-such-owner/no-such-model", None)


def test_the_bundled_model_has_one() -> None:
    model = bundled_model("heed-tiny")
    assert model is not None
    assert fingerprint(model_directory(str(model.directory), None)).startswith("heed1:")
