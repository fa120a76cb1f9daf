"""Settings out of the environment: what is read, and what is refused before the server starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from heed_server.settings import (
    ATTENTION_VARIABLE,
    BODY_VARIABLE,
    DEFAULT_BODY_BYTES,
    OPEN_VARIABLE,
    PLAYGROUND_VARIABLE,
    POLICY_VARIABLE,
    PRIVILEGED_VARIABLE,
    STREAMING_VARIABLE,
    Settings,
    SettingsError,
    read_interventions,
    read_policy,
)


def written(path: Path, content: Any) -> Path:
    file = path / "file.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_without_variables_everything_is_allowed_and_nothing_privileged() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.policy.methods is None and not settings.allow_privileged
    assert settings.max_body_bytes == DEFAULT_BODY_BYTES


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"methods": {"locore": {}}, "protect_prefix_tokens": 12})
    policy = Settings.from_environment({POLICY_VARIABLE: str(file)}).policy
    assert policy.bounds("locore") == {} and policy.protect_prefix_tokens == 12


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"methods": {"locore": {}, "locore": {}}}', "'locore' stands there twice"),
        ({"methods": {"locore": {"beta": {"maximum": "x"}}}}, "methods.locore.beta.maximum"),
    ],
    ids=["cut", "deep", "a name twice", "a bound that is none"],
)
def test_a_policy_that_cannot_be_used_is_refused_by_file_and_path(
    tmp_path: Path, content: Any, words: str
) -> None:
    file = written(tmp_path, content)
    with pytest.raises(SettingsError) as caught:
        read_policy(file)
    assert str(file) in str(caught.value) and words in str(caught.value)


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_policy(tmp_path / "none.json")


def test_default_interventions_are_checked_as_a_request_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"interventions\.0\.gamma"):
        read_interventions(written(tmp_path, [{"method": "zerotuning", "gamma": 0}]))


@pytest.mark.parametrize("variable", [BODY_VARIABLE, OPEN_VARIABLE, STREAMING_VARIABLE])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "٣", "9" * 40])
def test_a_number_that_is_none_is_refused_with_its_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: value})


SWITCHES = {
    PRIVILEGED_VARIABLE: "allow_privileged",
    PLAYGROUND_VARIABLE: "playground",
    ATTENTION_VARIABLE: "attention",
}


@pytest.mark.parametrize(("variable", "field"), SWITCHES.items())
def test_a_switch_is_on_or_off_in_any_of_the_usual_words(variable: str, field: str) -> None:
    for words, expected in (("1 true TRUE yes on", True), ("0 false False no off", False)):
        for word in words.split():
            assert getattr(Settings.from_environment({variable: word}), field) is expected
    assert Settings.from_environment({variable: ""}) == Settings()


@pytest.mark.parametrize("variable", SWITCHES)
@pytest.mark.parametrize("value", ["2", "maybe", " 1", "-"])
def test_a_switch_that_is_neither_is_refused_with_its_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: value})


def test_any_number_of_requests_may_be_open_unless_a_number_is_given() -> None:
    assert Settings.from_environment({}).max_open_requests is None
    assert Settings.from_environment({OPEN_VARIABLE: "300"}).max_open_requests == 300
