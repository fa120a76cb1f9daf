"""Every eviction method's page ends in a request that evicts something from the bundled model's prompt."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from heed_interventions import METHODS, ModelView, PromptView, TokenText, parse, resolve
from heed_interventions.eviction.budget import EvictionMethod
from heed_kernels.evict import Evict

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "server/heed_server/bundled/heed-tiny"
EVICTORS = [name for name, method in METHODS.items() if issubclass(method, EvictionMethod)]


def model() -> ModelView:
    config = json.loads((BUNDLED / "config.json").read_text())
    return ModelView(
        layers=config["num_hidden_layers"],
        query_heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        max_length=config["max_position_embeddings"],
    )


@pytest.mark.parametrize("name", EVICTORS)
def test_the_example_of_a_methods_page_evicts(name: str) -> None:
    page = (ROOT / f"docs/methods/{name}.md").read_text()
    (written,) = re.findall(r"-d '(\{.*?\})'\n```", page, re.DOTALL)
    body = json.loads(written)
    length = len(Tokenizer.from_file(str(BUNDLED / "tokenizer.json")).encode(body["prompt"]).ids)
    view = PromptView(length, lambda: TokenText("", range(0), range(0)), ())
    resolution = resolve(parse(body["interventions"]), model(), view)
    (report,) = resolution.reports
    assert (report["method"], report["status"]) == (name, "applied"), report.get("reason")
    (edit,) = resolution.edits
    assert isinstance(edit, Evict)
    assert max(edit.counts) < length, "every layer lets keys go"
