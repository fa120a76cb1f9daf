"""`heed serve`: vLLM's own server, started with what Heed needs."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from heed_server.argument_types import positive
from heed_server.engine.plugin import PLUGIN_NAME
from heed_server.hangup import pass_hangups_on
from heed_server.models import bundled_model
from heed_server.settings import (
    ATTENTION_VARIABLE,
    BODY_VARIABLE,
    DEFAULTS_VARIABLE,
    OPEN_VARIABLE,
    PLAYGROUND_VARIABLE,
    POLICY_VARIABLE,
    PRIVILEGED_VARIABLE,
    PROFILES_VARIABLE,
    STREAMING_VARIABLE,
    Settings,
    SettingsError,
)

DEFAULT_MODEL = "heed-tiny"
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups that vLLM loads in full while VLLM_PLUGINS is unset; `vllm.endpoint_plugins` it does not."""


def serve(arguments: Sequence[str]) -> None:
    """Start the server in the foreground; returns when it has shut down as it was asked to.

    arguments: Heed's own flags and any of vLLM's.

    Raises:
        SettingsError: a setting, written or in the environment, cannot be used; or another server than
            the one over HTTP is asked for.
        ImportError: Heed's part of the API cannot be loaded.
        SystemExit: with 1 where an engine failed.
    """
    parsed = read(arguments)

    from vllm.entrypoints.cli.serve import ServeSubcommand

    from heed_server.api.leaving import engine_failed

    pass_hangups_on()
    ServeSubcommand.cmd(parsed)
    if engine_failed():
        raise SystemExit(1)


def read(arguments: Sequence[str]) -> Namespace:
    """All flags as vLLM takes them, and Heed's settings in this process's environment, which others inherit.

    Raises:
        SettingsError, ImportError: as `serve`.
        SystemExit: with 2 where a flag is none of either's.
    """
    # vLLM loads plug-ins while it builds its parser.
    os.environ["VLLM_PLUGINS"] = ",".join(plugin_names(os.environ.get("VLLM_PLUGINS")))

    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="heed serve"))
    add_arguments(parser)
    parsed = with_model(parser, arguments, os.environ)
    if parsed.grpc:
        raise SettingsError("--grpc: vLLM's gRPC server has no place for interventions")
    # vLLM only logs that an endpoint plug-in does not load, and would serve without it.
    import_module("heed_server.api.plugin")
    pass_settings_on(os.environ, parsed)
    # The API process reads them once more, when the model is loaded: what is wrong is said before.
    Settings.from_environment(os.environ)
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    return parsed


def add_arguments(parser: ArgumentParser) -> None:
    """Heed's own flags, beside vLLM's."""
    group = parser.add_argument_group("Heed", "Interventions in attention.")
    group.add_argument(
        "--default-interventions",
        metavar="FILE",
        type=Path,
        help="JSON list of interventions for requests that say nothing.",
    )
    group.add_argument(
        "--profiles",
        metavar="DIR",
        type=Path,
        help="Directory of profiles (`heed calibrate` makes them), read again on SIGHUP; a bundled "
        "model's own by default.",
    )
    group.add_argument(
        "--allow-privileged-interventions",
        action="store_true",
        help="Serve methods that can work around a model's training (off by default).",
    )
    group.add_argument(
        "--intervention-policy",
        metavar="FILE",
        type=Path,
        help="JSON: the methods that requests may ask for, bounds on their parameters, and how many "
        "first tokens of a prompt no edit may weaken.",
    )
    group.add_argument(
        "--max-body-bytes",
        metavar="BYTES",
        type=positive,
        help="Largest body of a request (default: 64 MiB).",
    )
    group.add_argument(
        "--max-open-requests",
        metavar="N",
        type=positive,
        help="Requests that each API process may have open at once; more get a 503 (default: any number).",
    )
    group.add_argument(
        "--no-playground",
        action="store_true",
        help="Serve no page at /; what it would show is what /v1 answers.",
    )
    group.add_argument(
        "--no-attention-diagnostics",
        action="store_true",
        help="Serve no POST /v1/attention, which shows what goes on inside the model.",
    )
    group.add_argument(
        "--max-streaming-length",
        metavar="TOKENS",
        type=positive,
        help="Longest prompt and answer together of requests with streaming_llm in rolling positions; "
        "all others keep the model's context (default: these too).",
    )


def with_model(
    parser: ArgumentParser, arguments: Sequence[str], environment: Mapping[str, str]
) -> Namespace:
    """All flags, with what to serve: the model named first, or by --model, or the bundled one.

    A bundled model is served from its directory, under its own name, with its own profiles and options. They
    are defaults of the parser, so that what stands on the command line or in a file (--config) holds,
    however it is spelled.
    """
    parser.set_defaults(model=None)
    parsed = parser.parse_args(list(arguments))
    named = parsed.model_tag if parsed.model_tag is not None else parsed.model
    bundled = bundled_model(named or DEFAULT_MODEL)
    if bundled is not None:
        parser.set_defaults(
            served_model_name=[bundled.name],
            profiles=bundled.profiles,
            **bundled.engine_options(environment),
        )
        parsed = parser.parse_args(list(arguments))
        named = str(bundled.directory)
    if named is None:
        raise SystemExit(f"heed: the bundled model {DEFAULT_MODEL} is missing")
    parsed.model_tag = parsed.model = named
    return parsed


def pass_settings_on(environment: MutableMapping[str, str], parsed: Namespace) -> None:
    """Heed's settings for the other processes, which read them from the environment, in place."""
    if parsed.default_interventions is not None:
        environment[DEFAULTS_VARIABLE] = str(parsed.default_interventions.resolve())
    if parsed.profiles is not None:
        environment[PROFILES_VARIABLE] = str(parsed.profiles.resolve())
    if parsed.allow_privileged_interventions:
        environment[PRIVILEGED_VARIABLE] = "1"
    if parsed.intervention_policy is not None:
        environment[POLICY_VARIABLE] = str(parsed.intervention_policy.resolve())
    if parsed.max_body_bytes is not None:
        environment[BODY_VARIABLE] = str(parsed.max_body_bytes)
    if parsed.max_open_requests is not None:
        environment[OPEN_VARIABLE] = str(parsed.max_open_requests)
    if parsed.no_playground:
        environment[PLAYGROUND_VARIABLE] = "0"
    if parsed.no_attention_diagnostics:
        environment[ATTENTION_VARIABLE] = "0"
    if parsed.max_streaming_length is not None:
        environment[STREAMING_VARIABLE] = str(parsed.max_streaming_length)


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
