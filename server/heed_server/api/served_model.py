"""What is served: the workers' answer about the model, as methods and profiles know it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from heed_interventions.errors import InterventionError
from heed_interventions.views import ModelView
from heed_interventions.vision.sink_dimensions import sink_dimensions
from heed_kernels.table import EditTable
from heed_server.engine.model.image_positions import takes_images
from heed_server.engine.model.model_support import ModelSupport
from heed_server.profiles.identity import (
    ModelIdentity,
    UnknownFilesError,
    fingerprint,
    model_directory,
)
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings, SettingsError

logger = init_logger("vllm.heed.api")

DESCRIBE = "heed_describe"
"""What workers are asked for `ModelSupport` by."""


def support_of(answer: Mapping[str, Any]) -> ModelSupport:
    """The answer of one worker's `heed_describe`."""
    return ModelSupport(**{field.name: answer[field.name] for field in fields(ModelSupport)})


def runs_without_heed(error: Exception) -> bool:
    """Whether a call for DESCRIBE failed because the workers have no such method.

    Between processes vLLM keeps an error's text alone, with other text around it; the one looked for is of
    `vllm.v1.serial_utils.run_method`.
    """
    return f"Method {DESCRIBE!r} is not implemented" in str(error)


def no_support(max_length: int) -> ModelSupport:
    """Of workers that do not answer `heed_describe`: edits are refused."""
    return ModelSupport(
        0, 0, 0, 0, 0, 0, max_length, unsupported="the server's workers run without Heed", rotary=False
    )  # fmt: skip


def view_of(support: ModelSupport, config: Any) -> ModelView:
    """The model as methods see it.

    config: vLLM's configuration of the model.
    """
    return ModelView(
        layers=support.layers,
        query_heads=support.query_heads,
        kv_heads=support.kv_heads,
        head_dim=support.head_dim,
        max_length=support.max_length,
        vision=takes_images(config),
        unsupported=support.unsupported,
        eviction_obstacle=support.eviction_obstacle,
        rotary=support.rotary,
        longest_step=support.longest_step,
        hidden_size=support.hidden_size,
        inputs_obstacle=support.inputs_obstacle,
        patches=support.patches,
        tower_obstacle=support.tower_obstacle,
        sink_dims=sink_dimensions(
            support.model_type, support.hidden_size, support.layers, support.kv_heads
        ),
    )


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


def profiles_for(
    settings: Settings, identity: ModelIdentity | None, view: ModelView
) -> ProfileStore:
    """The profiles of a server with these settings.

    Raises:
        SettingsError: a default intervention does not hold, or the directory cannot be read.
    """
    try:
        store = ProfileStore(settings.profiles, identity, view, settings.default_interventions)
        for index, method in enumerate(store.loaded.defaults):
            settings.policy.check(method, f"interventions.{index}")
        return store
    except InterventionError as error:
        raise SettingsError(f"default interventions: {error.param}: {error}") from error
    except OSError as error:
        raise SettingsError(f"{settings.profiles}: {error.strerror}") from error


def scratch_table(support: ModelSupport) -> EditTable | None:
    """A table of the model's shape with one row, in which sets are tried; None where none can be edited."""
    if support.unsupported is not None:
        return None
    return EditTable(
        slots=1,
        layers=support.layers,
        query_heads=support.query_heads,
        kv_heads=support.kv_heads,
    )
