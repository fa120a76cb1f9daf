"""The client's builders are those of the served schemas."""

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from from_schemas import python_client, typescript
from pydantic import ValidationError

import heed_client
import heed_client.methods
import heed_server.version
from heed_client import Intervention, bodies, extra_body, from_profile
from heed_client.methods import ACT, SPIN, Emphasis, PositionSpan, SnapKV, TextSpan, ZeroTuning
from heed_interventions import METHODS, method_schema

BUILDERS: dict[str, type[Intervention]] = {
    value.model_fields["method"].default: value
    for value in vars(heed_client.methods).values()
    if isinstance(value, type) and issubclass(value, Intervention) and value is not Intervention
}


@pytest.mark.parametrize("client", [python_client, typescript])
def test_the_file_is_what_the_schemas_make(client: ModuleType) -> None:
    made = client.render(method_schema(method) for method in METHODS.values())
    assert client.TARGET.read_text() == made, "run `make client`"


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
