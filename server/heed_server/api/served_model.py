"""Which model this server runs, as profiles know it."""

from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from heed_server.engine.model_support import ModelSupport
from heed_server.profiles.identity import (
    ModelIdentity,
    UnknownFilesError,
    fingerprint,
    model_directory,
)

logger = init_logger("vllm.heed.api")


def served_identity(config: Any, support: ModelSupport) -> ModelIdentity | None:
    """What profiles are compared with; None where the model's files are not on this machine.

    config: vLLM's configuration of the model.
    """
    try:
        directory = model_directory(config.model, config.revision)
        digest = fingerprint(directory)
    except UnknownFilesError as error:
        logger.warning("Heed: profiles cannot be used: %s", error)
        return None
    name = directory.name if Path(config.model).is_dir() else config.model
    return ModelIdentity(
        id=name,
        architecture=config.architecture,
        layers=support.layers,
        query_heads=support.query_heads,
        kv_heads=support.kv_heads,
        head_dim=support.head_dim,
        fingerprint=digest,
    )
