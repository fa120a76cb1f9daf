"""`heed serve`: vLLM's own server, started with what Heed needs."""

import argparse
import os
from collections.abc import MutableMapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from heed_server.engine.plugin import PLUGIN_NAME
from heed_server.models import bundled_model, bundled_models
from heed_server.settings import DEFAULTS_VARIABLE, PRIVILEGED_VARIABLE, read_interventions

DEFAULT_MODEL = "heed-tiny"
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups that vLLM loads in full while VLLM_PLUGINS is unset; `vllm.endpoint_plugins` it does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Heed's own flags; everything else is vLLM's."""
    parser.add_argument("model", nargs="?", default=None, help="model, or a bundled one's name")
    parser.add_argument(
        "--default-interventions",
        metavar="FILE",
        type=Path,
        help="JSON list of interventions for requests that say nothing",
    )
    parser.add_argument(
        "--allow-privileged-interventions",
        action="store_true",
        help="serve methods that can work around a model's training (off by default)",
    )


def serve(options: argparse.Namespace, vllm_arguments: Sequence[str]) -> None:
    """Start the server in the foreground; returns when it has shut down.

    Raises:
        SettingsError: the file of default interventions cannot be used.
    """
    if options.default_interventions is not None:
        read_interventions(options.default_interventions)
    set_environment(os.environ, options)
    arguments = [*model_arguments(options.model, vllm_arguments), *vllm_arguments]

    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="heed serve"))
    parsed = parser.parse_args(arguments)
    configure_logging_from_args(parsed)
    if parsed.model_tag is not None:
        parsed.model = parsed.model_tag
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def model_arguments(model: str | None, vllm_arguments: Sequence[str]) -> list[str]:
    """vLLM's arguments that name the model.

    A bundled model is served from its directory, under its own name, in float32: it is small, and
    conformance is promised in float32. What the user wrote for these flags is left alone.
    """
    given = {argument.split("=", 1)[0] for argument in vllm_arguments}
    if model is None and "--model" in given:
        return []
    name = model or DEFAULT_MODEL
    bundled = bundled_model(name)
    if bundled is None:
        if model is None:
            known = ", ".join(entry.name for entry in bundled_models()) or "none"
            raise SystemExit(f"heed: the bundled model {name} is missing (found: {known})")
        return [name]
    arguments = [str(bundled.directory)]
    for flag, value in (("--served-model-name", bundled.name), ("--dtype", "float32")):
        if flag not in given:
            arguments += [flag, value]
    return arguments


def set_environment(environment: MutableMapping[str, str], options: argparse.Namespace) -> None:
    """What vLLM's processes read from the environment, in place."""
    environment["VLLM_PLUGINS"] = ",".join(plugin_names(environment.get("VLLM_PLUGINS")))
    if options.default_interventions is not None:
        environment[DEFAULTS_VARIABLE] = str(options.default_interventions.resolve())
    if options.allow_privileged_interventions:
        environment[PRIVILEGED_VARIABLE] = "1"


def plugin_names(allowed: str | None) -> list[str]:
    """VLLM_PLUGINS with Heed in it.

    It is an allow-list over all of vLLM's plug-in groups: where the user set none, the plug-ins that
    vLLM would have loaded by itself are named too.
    """
    if allowed is None:
        names = {point.name for group in _PLUGIN_GROUPS for point in entry_points(group=group)}
    else:
        names = {name for name in allowed.split(",") if name}
    return sorted(names | {PLUGIN_NAME})
