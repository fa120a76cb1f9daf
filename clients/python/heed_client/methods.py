"""The methods and their parameters. Made by `make client` from the schemas of a server's catalogue."""

from typing import Literal

from pydantic import Field

from heed_client.intervention import Intervention, Parameters

# ruff: noqa: E501

__all__ = [
    "ACT",
    "GIFT",
    "H2O",
    "PAI",
    "PAINT",
    "SPIN",
    "TAPPA",
    "TOVA",
    "VAF",
    "VAR",
    "VHR",
    "AVARModulation",
    "AdaKV",
    "AdaptVis",
    "AttentionScale",
    "Emphasis",
    "ExpectedAttention",
    "HeadGain",
    "KeyDiff",
    "Knorm",
    "LocoRE",
    "PictureSpan",
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
        default=1,
        description='Which occurrence, 1-based, or "all". The spans together look at no more than 1,024 occurrences.',
    )


class PositionSpan(Parameters):
    """Token positions of the prompt."""

    start: int = Field(ge=0, le=2147483647, description="First token position.")
    end: int = Field(ge=0, le=2147483647, description="Past the last token position.")


class PictureSpan(Parameters):
    """The keys that hold an image of the prompt."""

    image: Literal["all"] | int = Field(description='Which image of the prompt, 1-based, or "all".')


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
    spans: list[TextSpan | PositionSpan | PictureSpan] = Field(
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )


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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )


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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=256,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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
    recent: int | None = Field(
        default=None,
        ge=0,
        lt=2147483647,
        description="Last tokens that are always kept; null: the method's own.",
    )
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


class PAI(Intervention):
    """Raise the attention of the answer to the image. The larger alpha, the more the answer
    looks at the image; near 0.7 it begins to degenerate.
    """

    method: Literal["pai"] = "pai"
    alpha: float = Field(
        default=0.5, ge=0, le=0.7, description="Share of its magnitude by which a logit grows."
    )
    gamma: float = Field(
        default=1.0,
        ge=1,
        le=2,
        description="Weight of contrastive decoding, which is not offered: only 1 is served.",
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 1 where it is left out.',
    )


class PAINT(Intervention):
    """Raise the attention of the answer to the patches that the image encoder attends to.
    The larger alpha and beta, the more the answer looks at these patches; above 0.7 it
    degenerates.
    """

    method: Literal["paint"] = "paint"
    alpha: float = Field(
        default=0.7, ge=0, le=0.75, description="Share by which logits of local patches grow."
    )
    beta: float = Field(
        default=0.3, ge=0, le=0.5, description="The same for the patches of the summary."
    )
    local_ratio: float = Field(
        default=0.25, ge=0, le=0.3, description="Share of an image's patches that are local."
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 1 where it is left out.',
    )


class VAF(Intervention):
    """Scale the logits of the image, and of what stands before it; the latter is
    privileged. enh_para > 1 sharpens the attention to the image; sup_para < 1 takes it from
    the system prompt.
    """

    method: Literal["vaf"] = "vaf"
    enh_para: float = Field(default=1.15, ge=1, le=2, description="Factor on the image's logits.")
    sup_para: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Factor on the logits before the first image; below 1 is privileged.",
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layers 9 to 14 where it is left out.',
    )


class AVARModulation(Intervention):
    """Scale up the image's logits, and scale down the system prompt's (privileged).
    alpha_img > 0 sharpens the attention to the image; alpha_sys > 0 takes it from the
    system prompt.
    """

    method: Literal["avar"] = "avar"
    alpha_img: float = Field(
        default=0.15, ge=0, le=0.5, description="By how much the image's logits are scaled up."
    )
    alpha_sys: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="By how much logits before the first image are scaled down; above 0 is privileged.",
    )
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )
    rows: Literal["all", "prompt", "generated", "last_and_generated", "after_image"] = Field(
        default="after_image", description="Which query rows are edited, by absolute position."
    )


class AdaptVis(Intervention):
    """Sharpen or spread the attention to the image in the row that gives the first token. w
    > 1 where the model looks at the right place already; w < 1 where it should look
    elsewhere.
    """

    method: Literal["adaptvis"] = "adaptvis"
    w: float = Field(ge=0.25, le=4, description="Factor on the image's logits.")
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )


class VAR(Intervention):
    """Move attention from sinks to the parts of the image that are none. The larger
    move_fraction, the less the sinks keep; the gate leaves heads alone that look elsewhere.
    """

    method: Literal["var"] = "var"
    move_fraction: float = Field(
        default=0.6, ge=0, le=1, description="Share of its weight that a sink gives."
    )
    rho: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share that the image's other keys have in what a head gives to the image.",
    )
    min_visual_mass: float = Field(
        default=0.2, ge=0, le=1, description="Least weight that a head gives to the image."
    )
    tau: float = Field(default=20.0, gt=0, le=200, description="A token is a sink above this phi.")
    include_text_sinks: bool = Field(
        default=True, description="Sinks outside of the image give as well."
    )
    sink_dims: list[int] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Dimensions of the hidden state in which sinks stand out; the model's own where they are known.",
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 2 where it is left out.',
    )
    prefill: bool = Field(default=True, description="Edit the prompt's rows after the image.")
    decode: bool = Field(default=True, description="Edit generated rows.")


class VHR(Intervention):
    """Reinforce the heads whose output depends on the image most, chosen once per answer.
    The larger alpha, the more the chosen heads weigh; above 3 answers degenerate in the
    paper.
    """

    method: Literal["vhr"] = "vhr"
    alpha: float = Field(default=2.0, gt=0, le=3.5, description="Factor on the chosen heads.")
    select_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="Share of a layer's heads that are chosen."
    )
    filter: bool = Field(
        default=True, description="Leave heads out that are outliers with and without the image."
    )
    mode: Literal["companion", "masked"] = Field(
        default="companion",
        description='What a head gives without the image: "companion" runs the prompt without it first; "masked" leaves the image\'s keys out of the softmax, which is cheaper and differs.',
    )
    rows: Literal["last_and_generated", "all"] = Field(
        default="last_and_generated",
        description='Which rows are reinforced: "all" are those of the prompt too, whose prefill is one step.',
    )
    layers: Literal["all"] | list[int] | None = Field(
        default=None,
        description='"all" or layer ids, 0-based; negative ids count from the last layer. Layer 1 and the last 14 where it is left out.',
    )


class SPIN(Intervention):
    """Weaken, in each row of the answer, the heads that attend least to the image. The
    smaller ratio and lambda, the more heads are weakened, and the further.
    """

    method: Literal["spin"] = "spin"
    ratio: float = Field(
        default=0.8, gt=0, le=1, description="Share of a layer's heads that stay, at least one."
    )
    lambda_: float = Field(
        default=0.1, ge=0, le=1, description="Factor on the other heads' outputs.", alias="lambda"
    )
    layers: Literal["all"] | list[int] = Field(
        default="all",
        description='"all" or layer ids, 0-based; negative ids count from the last layer.',
    )


class GIFT(Intervention):
    """Raise the attention to the parts of the image that the question turned to. The larger
    alpha, the more the answer looks at what the question turned to.
    """

    method: Literal["gift"] = "gift"
    alpha: float = Field(default=5.0, ge=0, le=8, description="How far salient keys are raised.")
    beta: float = Field(
        default=1.0, ge=0, le=2, description="How far the question's keys follow the image's."
    )
    saliency_layer: int = Field(
        ge=-10000,
        lt=10000,
        description="Layer in which the saliency is found; below all of `layers`.",
    )
    layers: Literal["all"] | list[int] = Field(
        description='"all" or layer ids, 0-based; negative ids count from the last layer.'
    )
    head_fraction: float = Field(
        default=0.5, gt=0, le=1, description="Share of a layer's heads that are the top ones."
    )
    content_rows: Literal["all"] | list[TextSpan | PositionSpan | PictureSpan] = Field(
        default="all", description="Rows of the question that count: its words of content."
    )
