"""Which model a profile was made for, and whether it is the one being served."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FINGERPRINT_PREFIX = "heed1:"
"""Names the recipe below; another recipe gets another number."""

_SAMPLE = 4096
_LONGEST_HEADER = 100_000_000
_NOT_THE_MODEL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of a config.json that say who wrote it and how it is run, not what the model computes."""


class UnknownFilesError(Exception):
    """The model's files cannot be read, so nothing can be said of its identity."""


class ModelIdentity(BaseModel):
    """A model's shape, and a digest of its configuration and weights.

    id: the name under which it was loaded (a directory's name without its path); for people.
    fingerprint: see `fingerprint`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    architecture: str
    layers: int = Field(ge=0)
    query_heads: int = Field(ge=0)
    kv_heads: int = Field(ge=0)
    head_dim: int = Field(ge=0)
    fingerprint: str

    def same_model(self, other: "ModelIdentity") -> bool:
        """Whether all but the name agree."""
        return self.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"})

    def __str__(self) -> str:
        return (
            f"{self.id} ({self.architecture}, {self.layers} layers of {self.query_heads} query and "
            f"{self.kv_heads} KV heads of {self.head_dim}, {self.fingerprint[:18]}…)"
        )


class Serving(BaseModel):
    """With what a model is served: what two measurements must share to be one.

    dtype: of weights and activations, as in "bfloat16".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    heed: str
    vllm: str | None
    dtype: str


def model_directory(model: str, revision: str | None) -> Path:
    """Where the files of a model lie that vLLM has loaded: a path, or a name on the Hugging Face hub.

    Raises:
        UnknownFilesError: neither that nor in the hub's local cache.
    """
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise UnknownFilesError(f"the files of {model} are not on this machine") from error


def fingerprint(directory: Path) -> str:
    """SHA-256 over the configuration, and name, type, shape and a sample of every tensor.

    The sample is 4 KiB out of the middle, so that it costs one short read a tensor whatever the
    size. How the weights are cut into files makes no difference, nor does the precision in which
    they are served.

    Raises:
        UnknownFilesError: there is no config.json, or there are no safetensors files, or one of
            them is damaged.
    """
    hashed = hashlib.sha256()
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
        _add(hashed, json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
        files = sorted(directory.glob("model*.safetensors")) or sorted(
            directory.glob("*.safetensors")
        )
        if not files:
            raise UnknownFilesError(f"{directory.name} holds no safetensors files")
        for tensor in sorted(found for file in files for found in _tensors(file)):
            for part in tensor:
                _add(hashed, part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownFilesError(f"the files of {directory.name} cannot be read: {error}") from error
    return FINGERPRINT_PREFIX + hashed.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, type and shape, and a sample of the bytes of each tensor of a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LONGEST_HEADER:
            raise UnknownFilesError(f"{file.name} is no safetensors file")
        header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            start, stop = tensor["data_offsets"]
            size = min(_SAMPLE, stop - start)
            stream.seek(8 + length + start + (stop - start - size) // 2)
            form = json.dumps([tensor["dtype"], tensor["shape"]]).encode()
            yield name.encode(), form, stream.read(size)


def _add(hashed: "hashlib._Hash", part: bytes) -> None:
    hashed.update(len(part).to_bytes(8, "big"))
    hashed.update(part)
