import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from heed_server import models
from heed_server.engine.plugin import RUST_VARIABLE, FrontEndError, require_python_front_end
from heed_server.launcher import (
    BUNDLED_KV_CACHE_BYTES,
    choose_model,
    pass_settings_on,
    plugin_names,
    serve,
)
from heed_server.settings import (
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


def chosen(environment: Mapping[str, str] | None = None, **written: Any) -> Namespace:
    blank = {
        "model_tag": None,
        "model": None,
        "served_model_name": None,
        "dtype": "auto",
        "kv_cache_memory_bytes": None,
        "enforce_eager": False,
        "profiles": None,
    }
    parsed = Namespace(**(blank | written))
    choose_model(parsed, environment or {})
    return parsed


def test_without_a_model_the_bundled_one_is_served_in_float32_under_its_name() -> None:
    parsed = chosen()
    assert Path(parsed.model).name == "heed-tiny" and parsed.model == parsed.model_tag
    assert (parsed.served_model_name, parsed.dtype) == (["heed-tiny"], "float32")


def test_every_bundled_directory_is_served_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heed-tiny-vision").mkdir()
    (tmp_path / "heed-tiny-vision" / "config.json").write_text("{}")
    monkeypatch.setattr(models, "_DIRECTORY", tmp_path)
    parsed = chosen(model_tag="heed-tiny-vision")
    assert parsed.model == str(tmp_path / "heed-tiny-vision")
    assert (parsed.served_model_name, parsed.dtype) == (["heed-tiny-vision"], "float32")


def test_the_bundled_model_starts_quickly_and_leaves_memory_to_others() -> None:
    parsed = chosen()
    assert parsed.enforce_eager and parsed.kv_cache_memory_bytes == BUNDLED_KV_CACHE_BYTES
    assert chosen(kv_cache_memory_bytes=5).kv_cache_memory_bytes == 5
    assert chosen({"VLLM_CPU_KVCACHE_SPACE": "4"}).kv_cache_memory_bytes is None


def test_what_the_user_wrote_about_the_bundled_model_wins() -> None:
    parsed = chosen(model_tag="heed-tiny", dtype="bfloat16", served_model_name=["x"])
    assert Path(parsed.model).is_dir()
    assert (parsed.served_model_name, parsed.dtype) == (["x"], "bfloat16")


def test_another_model_is_passed_to_vllm_as_it_is() -> None:
    parsed = chosen(model_tag="some/model")
    assert (parsed.model, parsed.served_model_name, parsed.dtype) == ("some/model", None, "auto")


def test_a_model_given_by_vllms_own_flag_is_served() -> None:
    assert chosen(model="some/model").model == "some/model"


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
    )
    pass_settings_on(environment, options)
    assert environment[DEFAULTS_VARIABLE] == str(tmp_path / "d.json")
    assert environment[PROFILES_VARIABLE] == str(tmp_path / "profiles")
    assert environment[PRIVILEGED_VARIABLE] == "1"
    assert environment[STREAMING_VARIABLE] == "9000"
    assert environment[POLICY_VARIABLE] == str(tmp_path / "policy.json")
    assert environment[BODY_VARIABLE] == "1000"
    assert environment[OPEN_VARIABLE] == "300"
    assert environment[PLAYGROUND_VARIABLE] == "0"


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
