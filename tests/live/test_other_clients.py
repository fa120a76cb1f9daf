"""The examples of `docs/clients.md`, each with the library that it is about."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest
from live_server import LiveServer
from pages import blocks, page, run_script
from served_profiles import profile_of, reload

from heed_server.models import bundled_model

LANGCHAIN, LITELLM, NAMED = blocks(page("docs/clients.md"), "python")


@pytest.fixture(autouse=True)
def without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM would look for prices in the network when it is imported."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


def needed(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -r tests/client/requirements.txt")


@pytest.mark.parametrize(
    ("module", "example"),
    [("langchain_openai", LANGCHAIN), ("litellm", LITELLM)],
    ids=["LangChain", "LiteLLM"],
)
def test_a_client_sends_interventions_and_reads_reports(
    server: LiveServer, module: str, example: str
) -> None:
    needed(module)
    assert run_script(example, server).strip() == "- dog applied [[16, 22]]"


def test_langchain_takes_other_interventions_for_one_call(server: LiveServer) -> None:
    needed("langchain_openai")
    other = '[{"method": "zerotuning", "gamma": 1}]'
    script = f"""{LANGCHAIN}
bound = chat.bind(extra_body={{"interventions": {other}}})
print(bound.invoke(question).response_metadata["interventions"][0]["status"])
"""
    assert run_script(script, server).split()[-1] == "neutral"


def test_litellm_says_what_was_refused(server: LiveServer) -> None:
    needed("litellm")
    script = LITELLM.replace('"alpha": 0.1', '"alpha": 7')
    script = "import litellm\ntry:\n" + re.sub("^", "    ", script, flags=re.MULTILINE)
    script += "\nexcept litellm.BadRequestError as error:\n    print('interventions.0.alpha' in str(error))"
    assert run_script(script, server).split()[-1] == "True"


def test_a_profile_is_asked_for_as_a_model(server: LiveServer) -> None:
    name = "sentiment-zerotuning"
    bundled = bundled_model("heed-tiny")
    assert bundled is not None
    with profile_of(server, name) as root:
        shutil.copytree(bundled.profiles / name, root / name)
        reload(server, name, there=True)
        script = NAMED.replace("heed-tiny@", f"{server.model}@")
        assert run_script(script, server).split() == [server.model, name]
