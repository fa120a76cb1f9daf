"""The client's builders are those of the served schemas, and a new method needs nothing by hand."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

import heed_client
import heed_client.methods
import heed_server.version
from heed_client import Intervention, bodies, extra_body, from_profile
from heed_client.methods import ACT, SPIN, Emphasis, PositionSpan, SnapKV, TextSpan, ZeroTuning
from heed_interventions import METHODS, method_schema
from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit

CLIENT = Path(__file__).parents[2] / "clients" / "python"
BUILDERS: dict[str, type[Intervention]] = {
    value.model_fields["method"].default: value
    for value in vars(heed_client.methods).values()
    if isinstance(value, type) and issubclass(value, Intervention) and value is not Intervention
}


def module(name: str, path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return module("heed_client_generator", CLIENT / "generate.py")


def test_the_file_is_what_the_schemas_make(generator: ModuleType) -> None:
    made = generator.render(method_schema(method) for method in METHODS.values())
    assert generator.TARGET.read_text() == made, "run `make client`"


def test_the_client_is_of_the_servers_version() -> None:
    assert heed_client.__version__ == heed_server.version.__version__


def test_there_is_a_builder_for_each_method() -> None:
    assert set(BUILDERS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_builder_has_the_fields_bounds_and_defaults_of_the_schema(name: str) -> None:
    served = method_schema(METHODS[name])
    built = BUILDERS[name].model_json_schema()
    assert set(built["properties"]) == set(served["properties"])
    assert set(built.get("required", ())) == set(served["required"]) - {"method"}
    for field, schema in served["properties"].items():
        ours = built["properties"][field]
        assert ours.get("default") == schema.get("default", ours.get("default")), field
        assert bounds(ours) == bounds(schema), field


def bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a value, or of the one alternative of it that is not null."""
    others = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    holder = others[0] if len(others) == 1 else schema
    return {key: holder[key] for key in holder if "inimum" in key or "aximum" in key}


def examples() -> Iterator[tuple[Intervention, dict[str, Any]]]:
    yield ZeroTuning(gamma=1.6), {"method": "zerotuning", "gamma": 1.6}
    yield (
        ZeroTuning(gamma=2, layers=[1, -1], heads={"1": [0, 3]}),
        {"method": "zerotuning", "gamma": 2, "layers": [1, -1], "heads": {"1": [0, 3]}},
    )
    yield (
        Emphasis(spans=[TextSpan(text="a"), PositionSpan(start=2, end=5)]),
        {"method": "emphasis", "spans": [{"text": "a"}, {"start": 2, "end": 5}]},
    )
    yield SnapKV(keep=0.5, window=16), {"method": "snapkv", "keep": 0.5, "window": 16}
    yield SPIN(lambda_=0.2), {"method": "spin", "lambda": 0.2}
    yield ACT(profile="sentiment"), {"method": "act", "profile": "sentiment"}


@pytest.mark.parametrize(("built", "body"), list(examples()))
def test_only_what_was_written_is_sent(built: Intervention, body: dict[str, Any]) -> None:
    assert built.body() == body
    json.dumps(extra_body([built]))


def test_builders_and_plain_objects_mix() -> None:
    plain = from_profile("act", "sentiment", beta=0.2)
    assert bodies([ZeroTuning(gamma=2), plain]) == [
        {"method": "zerotuning", "gamma": 2},
        {"method": "act", "profile": "sentiment", "beta": 0.2},
    ]


@pytest.mark.parametrize("wrong", [{"gamma": 11}, {"gamma": 2, "gama": 1}, {}], ids=str)
def test_a_wrong_value_is_refused_where_it_is_built(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ZeroTuning(**wrong)


class Dimming(Method):
    """A method that the client has never heard of."""

    title = "Dimming"
    summary = "Takes a little of everything."
    paper = ""
    cache = CacheClass.SALTED

    method: Literal["dimming"] = "dimming"
    share: float = Field(gt=0, lt=1, description="How much.")
    layers: Layers = "all"
    heads: Heads = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return False

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield from ()


def test_a_new_method_gets_its_builder_by_itself(generator: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "methods.py"
    path.write_text(generator.render([method_schema(Dimming)]))
    made = module("methods_with_dimming", path)
    assert made.Dimming(share=0.5, heads=[1]).body() == {
        "method": "dimming",
        "share": 0.5,
        "heads": [1],
    }
    with pytest.raises(ValidationError):
        made.Dimming(share=1)
