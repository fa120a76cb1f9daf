import argparse
from pathlib import Path

from heed_server.launcher import model_arguments, plugin_names, set_environment
from heed_server.settings import DEFAULTS_VARIABLE, PRIVILEGED_VARIABLE


def test_without_a_model_the_bundled_one_is_served_in_float32_under_its_name() -> None:
    arguments = model_arguments(None, ["--port", "1"])
    assert Path(arguments[0]).name == "heed-tiny"
    assert arguments[1:] == ["--served-model-name", "heed-tiny", "--dtype", "float32"]


def test_what_the_user_wrote_about_the_bundled_model_wins() -> None:
    arguments = model_arguments("heed-tiny", ["--dtype=bfloat16", "--served-model-name", "x"])
    assert len(arguments) == 1


def test_another_model_is_passed_to_vllm_as_it_is() -> None:
    assert model_arguments("some/model", []) == ["some/model"]


def test_a_model_given_by_vllms_own_flag_is_left_to_vllm() -> None:
    assert model_arguments(None, ["--model", "some/model"]) == []


def test_heed_is_added_to_an_allow_list_of_plugins() -> None:
    assert plugin_names("other") == ["heed", "other"]


def test_without_an_allow_list_the_plugins_that_vllm_would_load_stay_loaded() -> None:
    names = plugin_names(None)
    assert "heed" in names
    assert "lora_filesystem_resolver" in names


def test_flags_reach_the_other_processes_through_the_environment(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    options = argparse.Namespace(
        default_interventions=tmp_path / "d.json", allow_privileged_interventions=True
    )
    set_environment(environment, options)
    assert environment[DEFAULTS_VARIABLE] == str(tmp_path / "d.json")
    assert environment[PRIVILEGED_VARIABLE] == "1"
    assert "heed" in environment["VLLM_PLUGINS"].split(",")
