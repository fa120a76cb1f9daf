import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from heed_server import models
from heed_server.engine.plugin import RUST_VARIABLE, FrontEndError, require_python_front_end
from heed_server.launcher import (
    add_arguments,
    pass_settings_on,
    plugin_names,
    read,
    serve,
    with_model,
)
from heed_server.models import KV_CACHE_BYTES
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
    SettingsError,
)


def chosen(*arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> Namespace:
    parser = make_arg_parser(FlexibleArgumentParser())
    add_arguments(parser)
    return with_model(parser, arguments, environment)


def test_without_a_model_the_bundled_one_is_served_in_float32_under_its_name() -> None:
    parsed = chosen()
    assert Path(parsed.model).name == "heed-tiny" and parsed.model == parsed.model_tag
    assert (parsed.served_model_name, parsed.dtype) == (["heed-tiny"], "float32")
    assert parsed.profiles == Path(parsed.model) / "profiles"


def test_every_bundled_directory_is_served_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heed-tiny-vision").mkdir()
    (tmp_path / "heed-tiny-vision" / "config.json").write_text("{}")
    monkeypatch.setattr(models, "_DIRECTORY", tmp_path)
    parsed = chosen("heed-tiny-vision")
    assert parsed.model == str(tmp_path / "heed-tiny-vision")
    assert (parsed.served_model_name, parsed.dtype) == (["heed-tiny-vision"], "float32")
    assert parsed.profiles is None


def test_the_bundled_model_starts_quickly_and_leaves_memory_to_others() -> None:
    parsed = chosen()
    assert parsed.enforce_eager and parsed.kv_cache_memory_bytes == KV_CACHE_BYTES
    small = chosen(environment={"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert small.kv_cache_memory_bytes is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dtype", "auto"], {"dtype": "auto"}),
        (["--dtype=bfloat16"], {"dtype": "bfloat16"}),
        (["--no-enforce-eager"], {"enforce_eager": False}),
        (["--no_enforce_eager"], {"enforce_eager": False}),
        (["--kv-cache-memory-bytes", "5"], {"kv_cache_memory_bytes": 5}),
        (["--kv_cache_memory_bytes=5"], {"kv_cache_memory_bytes": 5}),
        (["--served-model-name", "x"], {"served_model_name": ["x"]}),
        (["--profiles", "here"], {"profiles": Path("here")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_wrote_about_the_bundled_model_wins(
    flags: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    parsed = chosen("heed-tiny", *flags)
    assert Path(parsed.model).name == "heed-tiny"
    blank = {
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "served_model_name": ["heed-tiny"],
        "profiles": Path(parsed.model) / "profiles",
    }
    found = {name: getattr(parsed, name) for name in blank}
    assert found == blank | expected


def test_a_file_of_flags_wins_as_well(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("dtype: auto\nno-enforce-eager: true\n")
    parsed = chosen("--config", str(file))
    assert (parsed.dtype, parsed.enforce_eager) == ("auto", False)


def test_another_model_is_passed_to_vllm_as_it_is() -> None:
    parsed = chosen("some/model")
    assert (parsed.model, parsed.served_model_name, parsed.dtype) == ("some/model", None, "auto")
    assert (parsed.enforce_eager, parsed.profiles) == (False, None)


def test_a_model_given_by_vllms_own_flag_is_served() -> None:
    assert chosen("--model", "some/model").model == "some/model"


@pytest.mark.parametrize("flag", ["--max-body-bytes", "--max-streaming-length"])
@pytest.mark.parametrize("value", ["0", "-5", "many"])
def test_a_bound_that_is_none_is_refused_with_the_other_flags(flag: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        chosen(flag, value)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [(BODY_VARIABLE, "0"), (PLAYGROUND_VARIABLE, "maybe"), (POLICY_VARIABLE, "nowhere.json")],
)
def test_a_variable_that_cannot_be_used_ends_the_start_before_anything_is_loaded(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "heed")
    monkeypatch.setenv(PROFILES_VARIABLE, "")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=value if variable == POLICY_VARIABLE else variable):
        read(["heed-tiny"])


def test_heed_is_added_to_an_allow_list_of_plugins() -> None:
    assert plugin_names("other") == ["heed", "other"]


def test_without_an_allow_list_the_plugins_that_vllm_would_load_stay_loaded() -> None:
    names = plugin_names(None)
    assert "heed" in names
    assert "lora_filesystem_resolver" in names


def test_flags_reach_the_other_processes_through_the_environment(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    options = Namespace(
        default_interventions=tmp_path / "d.json",
        profiles=tmp_path / "profiles",
        allow_privileged_interventions=True,
        max_streaming_length=9000,
        intervention_policy=tmp_path / "policy.json",
        max_body_bytes=1000,
        max_open_requests=300,
        no_playground=True,
        no_attention_diagnostics=True,
    )
    pass_settings_on(environment, options)
    assert environment[DEFAULTS_VARIABLE] == str(tmp_path / "d.json")
    assert environment[PROFILES_VARIABLE] == str(tmp_path / "profiles")
    assert environment[PRIVILEGED_VARIABLE] == "1"
    assert environment[STREAMING_VARIABLE] == "9000"
    assert environment[POLICY_VARIABLE] == str(tmp_path / "policy.json")
    assert environment[BODY_VARIABLE] == "1000"
    assert environment[OPEN_VARIABLE] == "300"
    assert environment[PLAYGROUND_VARIABLE] == environment[ATTENTION_VARIABLE] == "0"


def test_vllm_is_not_served_without_heed_where_heed_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.setitem(sys.modules, "heed_server.api.plugin", None)
    with pytest.raises(ImportError):
        serve(["heed-tiny"])


def test_servers_that_know_no_interventions_are_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "heed")
    with pytest.raises(SettingsError, match="gRPC"):
        serve(["heed-tiny", "--grpc"])
    with pytest.raises(FrontEndError, match=RUST_VARIABLE):
        require_python_front_end({RUST_VARIABLE: "1"})
    for environment in ({}, {RUST_VARIABLE: "0"}):
        require_python_front_end(environment)
