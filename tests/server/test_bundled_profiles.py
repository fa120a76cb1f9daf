"""The profiles that come with a bundled model fit it, and say what they do."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from heed_interventions.views import ModelView
from heed_server.models import bundled_model
from heed_server.profiles.identity import ModelIdentity, fingerprint
from heed_server.profiles.profile import Profile
from heed_server.profiles.store import ProfileStore


@pytest.fixture(scope="module")
def store() -> ProfileStore:
    model = bundled_model("heed-tiny")
    assert model is not None
    config: SimpleNamespace = AutoConfig.from_pretrained(model.directory)
    shape = {
        "layers": config.num_hidden_layers,
        "query_heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    served = ModelIdentity(
        id=model.name,
        architecture=config.architectures[0],
        fingerprint=fingerprint(model.directory),
        **shape,
    )
    return ProfileStore(model.profiles, served, ModelView(max_length=2048, **shape))


def test_all_of_them_fit(store: ProfileStore) -> None:
    assert store.loaded.refused == {}
    methods = {profile.method for profile in store.loaded.profiles.values()}
    assert methods == {"act", "zerotuning", "head_gain", "emphasis"}
    assert store.loaded.complete == set(store.loaded.profiles) - {"emphasis"}


def test_each_was_measured_on_held_out_items(store: ProfileStore) -> None:
    for profile in store.loaded.profiles.values():
        assert_measured(profile)


def assert_measured(profile: Profile) -> None:
    (task,) = profile.evaluation.values()
    assert isinstance(task, dict) and task["items"] == 200
    settings = task["settings"]
    assert isinstance(settings, dict) and {"none", "profile"} < set(settings)
