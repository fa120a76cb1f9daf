"""The methods and their parameters. Made by `make client` from the schemas of a server's catalogue."""

from typing import Literal

from pydantic import Field

from heed_client.intervention import Intervention, Parameters

# ruff: noqa: E501

__all__ = [
    "ACT",
    "H2O",
    "TAPPA",
    "TOVA",
    "AdaKV",
    "AttentionScale",
    "Emphasis",
    "ExpectedAttention",
    "HeadGain",
    "KeyDiff",
    "Knorm",
    "LocoRE",
    "PositionSpan",
    "PyramidKV",
    "SnapKV",
    "StreamingLLM",
    "TaskKV",
    "TextSpan",
    "ZeroTuning",
]


class TextSpan(Parameters):
    """A text of the prompt, found by exact code points."""

    text: str = Field(min_length=1, max_length=65536, description="Text to look for in the prompt.")
    occurrence: Literal["all"] | int = Field(
        default=1, description='Which occurrence, 1-based, or "all".'
    )


class PositionSpan(Parameters):
    """Token positions of the prompt."""

    start: int = Field(ge=0, le=2147483647, description="First token position.")
    end: int = Field(ge=0, le=2147483647, description="Past the last token position.")


class ACT(Intervention):
    """Find attention sinks in the prompt and give most of their weight to the other keys.
    The smaller beta, the less the sinks keep; what they give goes to the other keys in
    proportion.
    """

    method: Literal["act"] = "act"
    beta: float = Field(default=0.4, ge=0, le=1, description="Share of its weight a sink keeps.")
    tau: float | None = Field(
        default=None, gt=0, le=1, description="A key is a sink when its mean weight is above this."
    )
    alpha_over_n: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="In place of tau: the threshold is this over the number of rows counted; 5 where neither is given.",
    )
    stats: Literal["full", "causal"] = Field(
        default="full",
        description='"full": sinks from all prompt rows, whose prefill is one step; "causal": from the rows before, renewed at rows 32, 64, 128, ...',
    )
    decode: Literal["frozen", "running", "off"] = Field(
        default="frozen",
        description="Generated rows: with the prompt's sinks, with sinks renewed at each row, or not.",
    )
    protect: Literal["first_flagged", "position_0"] = Field(
        default="first_flagged", description="Which key above the threshold is no sink."
    )
    max_sinks: int = Field(
        default=64, ge=1, le=64, description="Most sinks per head: the largest means."
    )
    min_rows: int = Field(
        default=1, ge=1, lt=2147483647, description="Rows that must see a key for it to be a sink."
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 2 where it is left out.',
    )
    heads: Literal["all"] | list[int] | dict[str, list[int]] = Field(
        default="all",
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the place of `layers`.',
    )


class ZeroTuning(Intervention):
    """Scale the attention that every row pays to the initial token. gamma > 1 draws
    attention to the initial token, gamma < 1 leaves more to the rest.
    """

    method: Literal["zerotuning"] = "zerotuning"
    gamma: float = Field(gt=0, le=10, description="Factor on the weight of the initial token.")
    position: int = Field(default=0, ge=0, lt=8, description="Position of the initial token.")
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )
    heads: Literal["all"] | list[int] | dict[str, list[int]] = Field(
        default="all",
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the place of `layers`.',
    )


class StreamingLLM(Intervention):
    """Let every row see only some initial tokens and a window of recent ones. Bounds what a
    row reads; what lies between sinks and window is out of reach for good.
    """

    method: Literal["streaming_llm"] = "streaming_llm"
    sinks: int = Field(default=4, ge=0, le=64, description="Initial tokens that stay visible.")
    window: int = Field(
        default=1020, ge=16, lt=2147483647, description="Recent tokens, the row's own included."
    )
    positions: Literal["rolling", "original"] = Field(
        default="rolling",
        description='"rolling" counts positions over the visible keys, as the paper does.',
    )


class Emphasis(Intervention):
    """Turn attention to chosen spans of the prompt by weakening the rest of it. The smaller
    alpha, the more a row looks at the spans and at what was generated.
    """

    method: Literal["emphasis"] = "emphasis"
    spans: list[TextSpan | PositionSpan] = Field(
        min_length=1, max_length=64, description="Parts of the prompt."
    )
    alpha: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Factor on the weight of prompt keys outside the spans.",
    )
    protect_positions: list[int] = Field(
        default=[0], max_length=64, description="Prompt positions that keep weight 1."
    )
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )
    heads: Literal["all"] | list[int] | dict[str, list[int]] = Field(
        default="all",
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the place of `layers`.',
    )
    rows: Literal["all", "prompt", "generated", "last_and_generated", "after_image"] = Field(
        default="all", description="Which query rows are edited, by absolute position."
    )


class LocoRE(Intervention):
    """Strengthen the attention of each generated token to those just before it. beta > 0
    keeps the answer coherent with its own last tokens; large values make it repeat.
    """

    method: Literal["locore"] = "locore"
    beta: float = Field(default=0.15, ge=0, le=1, description="Added weight of the last tokens.")
    window: int = Field(default=16, ge=1, le=256, description="How many tokens back.")
    include_prompt_tail: bool = Field(
        default=False, description="Count the prompt's keys after the last image as well."
    )
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )


class HeadGain(Intervention):
    """Multiply the output of chosen heads; a gain below 1 is privileged. gain > 1
    reinforces heads; below 1 it weakens, removes (0) or inverts them.
    """

    method: Literal["head_gain"] = "head_gain"
    gain: float = Field(ge=-2, le=4, description="Factor on the output; below 1 is privileged.")
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )
    heads: Literal["all"] | list[int] | dict[str, list[int]] = Field(
        default="all",
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the place of `layers`.',
    )
    rows: Literal["all", "prompt", "generated", "last_and_generated", "after_image"] = Field(
        default="all", description="Which query rows are edited, by absolute position."
    )


class AttentionScale(Intervention):
    """Multiply the attention logits of chosen heads; a scale below 1 is privileged. q_scale
    > 1 sharpens a head's attention; below 1 it flattens it, down to uniform at 0.
    """

    method: Literal["attention_scale"] = "attention_scale"
    q_scale: float = Field(ge=0, le=10, description="Factor on the logits; below 1 is privileged.")
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )
    heads: Literal["all"] | list[int] | dict[str, list[int]] = Field(
        default="all",
        description='"all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the place of `layers`.',
    )


class SnapKV(Intervention):
    """Keep the keys that the last rows of the prompt attend to; evict the rest. The window
    is the question in most prompts: what it does not look at is dropped for good.
    """

    method: Literal["snapkv"] = "snapkv"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    window: int = Field(
        default=32,
        ge=1,
        le=256,
        description="Last prompt rows that are observed; their keys are kept.",
    )
    kernel: int = Field(
        default=5, ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."
    )
    pooling: Literal["avg", "max"] = Field(default="avg", description="How scores are pooled.")


class H2O(Intervention):
    """Keep the keys with the most attention over all rows, and the recent ones. Half of the
    budget goes to the most recent tokens, unless `recent` says otherwise.
    """

    method: Literal["h2o"] = "h2o"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    decode: bool = Field(default=True, description="Go on evicting while the answer is generated.")


class TOVA(Intervention):
    """Keep the keys that the last row attends to, the same for all heads of a layer. One
    row decides; all heads of a layer keep the same keys.
    """

    method: Literal["tova"] = "tova"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    decode: bool = Field(default=True, description="Go on evicting while the answer is generated.")


class PyramidKV(Intervention):
    """SnapKV with more of the budget for early layers and less for late ones. The larger
    beta, the steeper the pyramid; 1 is SnapKV.
    """

    method: Literal["pyramidkv"] = "pyramidkv"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    window: int = Field(
        default=32,
        ge=1,
        le=256,
        description="Last prompt rows that are observed; their keys are kept.",
    )
    kernel: int = Field(
        default=5, ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."
    )
    pooling: Literal["avg", "max"] = Field(default="avg", description="How scores are pooled.")
    beta: float = Field(
        default=20, ge=1, le=100, description="The last layer gets about 1 / beta of the mean."
    )


class AdaKV(Intervention):
    """SnapKV's scores; the heads of a layer share its budget by where the highest lie.
    Heads with a flat attention keep more keys, heads that look at a few keep fewer.
    """

    method: Literal["adakv"] = "adakv"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    window: int = Field(
        default=32,
        ge=1,
        le=256,
        description="Last prompt rows that are observed; their keys are kept.",
    )
    kernel: int = Field(
        default=7, ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."
    )
    pooling: Literal["avg", "max"] = Field(default="max", description="How scores are pooled.")
    floor: float = Field(
        default=0.5, ge=0, le=1, description="Share of the budget that every head is sure of."
    )


class KeyDiff(Intervention):
    """Keep the keys that are least similar to the mean key. Looks at no query: the same
    keys are kept whatever is asked about the text.
    """

    method: Literal["keydiff"] = "keydiff"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)


class Knorm(Intervention):
    """Keep the keys with the smallest norm. Looks at no query and costs next to nothing."""

    method: Literal["knorm"] = "knorm"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)


class ExpectedAttention(Intervention):
    """Keep the keys that later queries are expected to attend to, by their distribution.
    Does not depend on the last rows: fit for a text that is questioned later.
    """

    method: Literal["expected_attention"] = "expected_attention"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=4, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    n_future_positions: int = Field(
        default=512, ge=1, le=8192, description="Positions over which the rotation is averaged."
    )
    use_covariance: bool = Field(
        default=True,
        description="Whether the covariance of the queries counts, or their mean only.",
    )
    epsilon: float = Field(
        default=0.02, ge=0, le=1, description="Added to the expected weight of every key."
    )


class TaskKV(Intervention):
    """Heads far from the layer's semantic centre keep all keys, the others a few. Far heads
    look at what is particular to a task, so they are spared.
    """

    method: Literal["task_kv"] = "task_kv"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=16, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=256, ge=0, lt=2147483647)
    window: int = Field(
        default=32,
        ge=1,
        le=256,
        description="Last prompt rows that are observed; their keys are kept.",
    )
    kernel: int = Field(
        default=7, ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."
    )
    pooling: Literal["avg", "max"] = Field(default="avg", description="How scores are pooled.")
    beta: float = Field(default=0.25, ge=0, le=1, description="Share of far heads in layer 0.")
    m: int = Field(default=1, ge=0, le=1024, description="Far heads in the last layer.")
    t: int = Field(
        default=256, ge=1, le=4096, description="Most attended keys in a head's semantic vector."
    )


class TAPPA(Intervention):
    """Layers whose queries resemble each other less get more of the budget. Keys are scored
    by mean and variance over the window, layers by how alike its queries are.
    """

    method: Literal["tappa"] = "tappa"
    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2147483647,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: int = Field(
        default=0, ge=0, le=256, description="Initial prompt tokens that are always kept."
    )
    recent: int | None = Field(default=None, ge=0, lt=2147483647)
    window: int = Field(
        default=32, ge=2, le=256, description="Last prompt rows that are observed; their keys stay."
    )
    kernel: int = Field(
        default=5, ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."
    )
    pooling: Literal["avg", "max"] = Field(default="avg", description="How scores are pooled.")
    gamma_c: float = Field(
        default=200, ge=0, le=10000.0, description="Factor on the variance of a key's weights."
    )
    alpha: float | None = Field(
        default=None, ge=0, le=1000000.0, description="Factor on 1 - q; null: nothing else counts."
    )
    tau1: float = Field(default=1.6, ge=0.1, le=10, description="Root of the entropy.")
    tau2: float = Field(default=0.4, ge=0.1, le=10, description="Root of the variance.")
