"""The profiles of a server: which fit its model, how requests take them, and how they are reloaded."""

from pathlib import Path
from typing import Any

import pytest
from tests.server.profile_maker import MODEL, VIEW, put

from heed_interventions import InterventionError, parse
from heed_server.api.model_names import served_names, take_profile
from heed_server.profiles.merge import merged
from heed_server.profiles.store import Loaded, ProfileStore

EMPHASIS = {"method": "emphasis", "parameters": {"alpha": 0.1, "heads": {"2": [1]}}}


def store(root: Path, defaults: list[Any] | None = None) -> ProfileStore:
    return ProfileStore(root, MODEL, VIEW, defaults or [])


def put_in(loaded: Loaded, *items: Any) -> Any:
    return merged(list(items), loaded.profiles, loaded.refused)


def refusal(loaded: Loaded, item: dict[str, Any]) -> InterventionError:
    with pytest.raises(InterventionError) as error:
        put_in(loaded, item)
    assert error.value.param == "interventions.0.profile"
    assert error.value.reason == "profile"
    return error.value


def test_a_request_takes_its_parameters_from_a_profile_and_its_own_win(tmp_path: Path) -> None:
    put(tmp_path)
    loaded = store(tmp_path).loaded
    asked = {"method": "zerotuning", "profile": "sentiment"}
    assert put_in(loaded, asked) == [asked | {"gamma": 2.0, "heads": {"1": [0, 3]}}]
    assert put_in(loaded, asked | {"gamma": 0.5})[0]["gamma"] == 0.5
    method = parse(put_in(loaded, asked))[0]
    assert method.profile == "sentiment"


def test_layers_written_beside_a_profile_take_the_place_of_its_heads_by_layer(
    tmp_path: Path,
) -> None:
    put(tmp_path)
    loaded = store(tmp_path).loaded
    item = {"method": "zerotuning", "profile": "sentiment", "layers": [2]}
    assert put_in(loaded, item) == [item | {"gamma": 2.0}]
    put(tmp_path, "layers", parameters={"gamma": 2.0, "layers": [1, 2]})
    item = {"method": "zerotuning", "profile": "layers", "heads": {"0": [1]}}
    assert put_in(store(tmp_path).loaded, item) == [item | {"gamma": 2.0}]


def test_a_null_beside_a_profile_leaves_its_value(tmp_path: Path) -> None:
    put(tmp_path)
    loaded = store(tmp_path).loaded
    asked = {"method": "zerotuning", "profile": "sentiment"}
    whole = put_in(loaded, asked)
    assert put_in(loaded, asked | {"gamma": None, "heads": None, "layers": None}) == whole


def test_a_profile_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, "alien", model=MODEL.model_dump() | {"fingerprint": "heed1:" + "1" * 64})
    loaded = store(tmp_path).loaded
    asked = {"method": "zerotuning", "profile": "absent"}
    missing = refusal(loaded, asked)
    assert missing.status == 404 and "sentiment" in str(missing)
    alien = refusal(loaded, asked | {"profile": "alien"})
    assert alien.status == 400 and "was made for small" in str(alien)
    assert refusal(loaded, asked | {"profile": "../sentiment"}).status == 400
    assert refusal(loaded, asked | {"profile": 7}).status == 400
    other = refusal(loaded, {"method": "locore", "profile": "sentiment"})
    assert "for zerotuning, not for locore" in str(other)


@pytest.mark.parametrize("raw", [None, 3, {}, [3], [{"profile": "x"}], [{"method": "y"}] * 9])
def test_what_is_no_list_of_interventions_is_left_to_the_parser(raw: Any) -> None:
    assert merged(raw, {}, {}) == raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "zerotunning"}, "unknown method"),
        ({"parameters": {"gamma": 11}}, "gamma"),
        ({"parameters": {"gama": 2}}, "gama"),
        ({"parameters": {}}, "gamma"),
        ({"parameters": {"gamma": 2.0, "heads": {"4": [0]}}}, "layer 4"),
        ({"parameters": {"gamma": 2.0, "heads": [8]}}, "head 8"),
        ({"model": MODEL.model_dump() | {"layers": 5}}, "5 layers"),
        ({"model": MODEL.model_dump() | {"architecture": "Other"}}, "Other"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_at_load(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    put(tmp_path, **changes)
    loaded = store(tmp_path).loaded
    assert not loaded.profiles
    assert words in loaded.refused["sentiment"]


def test_the_models_name_is_not_its_identity(tmp_path: Path) -> None:
    put(tmp_path, model=MODEL.model_dump() | {"id": "another-name"})
    assert set(store(tmp_path).loaded.profiles) == {"sentiment"}


def test_profiles_are_read_again_when_told(tmp_path: Path) -> None:
    put(tmp_path)
    profiles = store(tmp_path)
    put(tmp_path, "second")
    assert set(profiles.loaded.profiles) == {"sentiment"}
    profiles.reload()
    assert set(profiles.loaded.profiles) == {"sentiment", "second"}


def test_a_ring_of_links_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    put(tmp_path, "inner")
    (tmp_path / "inner" / "profile.json").unlink()
    (tmp_path / "inner" / "profile.json").symlink_to("profile.json")
    loaded = store(tmp_path).loaded
    assert set(loaded.profiles) == {"sentiment"} and set(loaded.refused) == {"ring", "inner"}


def test_a_folder_that_cannot_be_entered_is_refused_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)
    put(tmp_path, "closed")
    is_file = Path.is_file

    def refuse(self: Path) -> bool:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refuse)
    loaded = store(tmp_path).loaded
    assert set(loaded.profiles) == {"sentiment"} and "denied" in loaded.refused["closed"]


def test_a_directory_that_is_gone_at_a_reload_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path / "profiles")
    profiles = store(tmp_path / "profiles")
    (tmp_path / "profiles").rename(tmp_path / "elsewhere")
    profiles.reload()
    assert set(profiles.loaded.profiles) == {"sentiment"}


def test_defaults_may_name_a_profile_and_outlive_a_reload_without_it(tmp_path: Path) -> None:
    directory = put(tmp_path)
    profiles = store(tmp_path, [{"method": "zerotuning", "profile": "sentiment"}])
    assert profiles.loaded.defaults[0].model_dump()["gamma"] == 2
    (directory / "profile.json").unlink()
    profiles.reload()
    assert len(profiles.loaded.defaults) == 1 and not profiles.loaded.refused
    with pytest.raises(InterventionError, match="cannot be used"):
        store(tmp_path, [{"method": "zerotuning", "profile": "sentiment"}])


class Body:
    def __init__(self, model: str | None) -> None:
        self.model = model


def taken(loaded: Loaded, name: str | None) -> tuple[Any, str | None]:
    body = Body(name)
    return take_profile(body, lambda model: model in ("tiny", "a@b"), loaded), body.model


def test_a_model_name_may_carry_a_profile(tmp_path: Path) -> None:
    put(tmp_path)
    loaded = store(tmp_path).loaded
    assert taken(loaded, "tiny@sentiment") == (
        {"method": "zerotuning", "profile": "sentiment"},
        "tiny",
    )
    for name in (None, "tiny", "a@b", "unknown@sentiment", "unknown"):
        assert taken(loaded, name) == (None, name)
    assert served_names("tiny", loaded) == ["tiny@sentiment"]


@pytest.mark.parametrize(
    ("name", "status"), [("absent", 404), ("spans", 400), ("broken", 400), ("../x", 404)]
)
def test_a_model_name_with_a_profile_that_cannot_be_had_is_refused(
    tmp_path: Path, name: str, status: int
) -> None:
    put(tmp_path)
    put(tmp_path, "spans", **EMPHASIS)
    put(tmp_path, "broken", text="{")
    loaded = store(tmp_path).loaded
    assert set(loaded.profiles) == {"sentiment", "spans"}
    with pytest.raises(InterventionError) as error:
        taken(loaded, f"tiny@{name}")
    assert (error.value.status, error.value.param) == (status, "model")


def test_nothing_fits_a_model_whose_files_are_not_known(tmp_path: Path) -> None:
    put(tmp_path)
    loaded = ProfileStore(tmp_path, None, VIEW).loaded
    assert "not known" in loaded.refused["sentiment"]
