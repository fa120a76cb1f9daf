"""The methods that exist, by name."""

from typing import Any

from heed_interventions.act import ACT
from heed_interventions.attention_scale import AttentionScale
from heed_interventions.emphasis import Emphasis
from heed_interventions.eviction.adakv import AdaKV
from heed_interventions.eviction.expected_attention import ExpectedAttention
from heed_interventions.eviction.h2o import H2O
from heed_interventions.eviction.keydiff import KeyDiff
from heed_interventions.eviction.knorm import Knorm
from heed_interventions.eviction.pyramidkv import PyramidKV
from heed_interventions.eviction.snapkv import SnapKV
from heed_interventions.eviction.tappa import TAPPA
from heed_interventions.eviction.task_kv import TaskKV
from heed_interventions.eviction.tova import TOVA
from heed_interventions.head_gain import HeadGain
from heed_interventions.locore import LocoRE
from heed_interventions.method import Method
from heed_interventions.streaming_llm import StreamingLLM
from heed_interventions.support import support_matrix
from heed_interventions.views import ModelView
from heed_interventions.vision.adaptvis import AdaptVis
from heed_interventions.vision.avar import AVAR
from heed_interventions.vision.gift import GIFT
from heed_interventions.vision.pai import PAI
from heed_interventions.vision.paint import PAINT
from heed_interventions.vision.spin import SPIN
from heed_interventions.vision.vaf import VAF
from heed_interventions.vision.var import VAR
from heed_interventions.vision.vhr import VHR
from heed_interventions.zerotuning import ZeroTuning

METHODS: dict[str, type[Method]] = {
    cls.name(): cls
    for cls in (
        ACT,
        ZeroTuning,
        StreamingLLM,
        Emphasis,
        LocoRE,
        HeadGain,
        AttentionScale,
        SnapKV,
        H2O,
        TOVA,
        PyramidKV,
        AdaKV,
        KeyDiff,
        Knorm,
        ExpectedAttention,
        TaskKV,
        TAPPA,
        PAI,
        PAINT,
        VAF,
        AVAR,
        AdaptVis,
        VAR,
        VHR,
        SPIN,
        GIFT,
    )
}

MOST_INTERVENTIONS = 8
"""How many interventions one request may carry."""


def method_schema(method: type[Method]) -> dict[str, Any]:
    """JSON Schema of one intervention, self-contained; `method` is required and constant."""
    schema = method.model_json_schema()
    definitions = schema.pop("$defs", {})
    inlined: dict[str, Any] = _inline(schema, definitions)
    inlined["description"] = f"{method.summary} {method.__doc__}"
    inlined["title"] = method.title
    inlined["required"] = ["method", *inlined.get("required", [])]
    return inlined


def field_schema() -> dict[str, Any]:
    """JSON Schema of the field `interventions`, for OpenAPI."""
    return {
        "type": "array",
        "title": "Interventions",
        "description": "How the model's attention is edited for this request.",
        "maxItems": MOST_INTERVENTIONS,
        "items": {
            "oneOf": [method_schema(method) for method in METHODS.values()],
            "discriminator": {"propertyName": "method"},
        },
    }


def catalogue(model: ModelView) -> list[dict[str, Any]]:
    """Entries of `GET /v1/interventions` for the model being served, in a fixed order."""
    return [catalogue_entry(method, model) for method in METHODS.values()]


def catalogue_entry(method: type[Method], model: ModelView) -> dict[str, Any]:
    """One entry. `available` is said of the server at hand, `support` of every path that vLLM has;
    `privileged` is true where some parameters of the method need permission."""
    reason = method.obstacle(model)
    return {
        "method": method.name(),
        "title": method.title,
        "summary": method.summary,
        "paper": method.paper,
        "parameters": method_schema(method),
        "cache": method.cache.value,
        "available": reason is None,
        "reason": reason,
        "support": support_matrix(),
        "privileged": method.can_be_privileged,
    }


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with every reference replaced by its definition (none refers to itself)."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return {key: _inline(value, definitions) for key, value in node.items()}
