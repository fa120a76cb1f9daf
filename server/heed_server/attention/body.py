"""Body and answer of `POST /v1/attention`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from heed_interventions.selectors import Heads, Layers, shape
from heed_interventions.spans import Spans
from heed_server.api.requests import Interventions

MOST_ROWS = 4096

Measure = Literal[
    "attention", "column_mean", "sink", "mass", "entropy", "dormancy", "waad", "fai",
    "q_similarity", "vas", "vhd",
]  # fmt: skip
Encoding = Literal["json", "base64", "npz"]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def _text_or_list(value: Any) -> str | None:
    """As `selectors.shape`, for any text."""
    if isinstance(value, str):
        return "<text>"
    return "<list>" if isinstance(value, list) else None


Tokens = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[_TokenIds, Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type="wrong_type",
        custom_error_message="must be a text or a list of token ids",
    ),
]
RowIds = Annotated[
    Annotated[Literal["all"], Tag("<text>")]
    | Annotated[list[int], Field(min_length=1, max_length=MOST_ROWS), Tag("<list>")],
    Discriminator(
        shape,
        custom_error_type="wrong_type",
        custom_error_message='must be "all" or a list of row ids',
    ),
]


class AttentionBody(BaseModel):
    """A prompt, what to do to it, and what to say of its attention. Unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(default=None, description="As in a completion.")
    prompt: Tokens | None = Field(default=None, description="One text, or token ids.")
    messages: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, description="In place of `prompt`: a chat."
    )
    continuation: Tokens | None = Field(
        default=None,
        description="Tokens behind the prompt, the rows of WAAD and FAI; a text is tokenised by itself.",
    )
    interventions: Interventions = None
    layers: Layers = "all"
    heads: Heads = "all"
    rows: RowIds = Field(default=[-1], description='"all" or row ids, negative from the end.')
    spans: Spans | None = None
    epsilon: float = Field(
        default=0.3, gt=0, lt=1, description="Above this mean weight a key is a sink."
    )
    include: list[Measure] = Field(
        default=["attention", "column_mean", "sink", "mass"], min_length=1
    )
    encoding: Encoding = "json"

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of `prompt` and `messages` is needed")
        return self


class EncodedArray(BaseModel):
    """A tensor with `"encoding": "base64"`: little-endian, last axis fastest."""

    dtype: Literal["float32"]
    shape: list[int]
    data: str


Values = EncodedArray | list[Any]
"""Nested lists, null where a number is not defined; or an encoded array, there NaN."""


class Sink(BaseModel):
    """share: [layers][heads], of keys with a mean weight above epsilon; keys: [keys], of the heads;
    secondary: [layer, head, key] of each such key but the first, where enough rows see it."""

    epsilon: float
    share: Values
    keys: Values
    secondary: list[list[int]]


class Mass(BaseModel):
    """position_0 and image: [layers][heads][rows]; spans: [layers][heads][rows][spans]."""

    position_0: Values
    spans: Values | None = None
    image: Values | None = None


class Entropy(BaseModel):
    """[layers][heads][rows]: nats, and divided by the logarithm of the number of keys."""

    nats: Values
    normalised: Values


class Dormancy(BaseModel):
    """[layers][heads]: mean normalised row entropy, largest normalised column entropy."""

    row_entropy: Values
    column_entropy: Values


class Waad(BaseModel):
    """values: by token of the continuation; local_heads: [layer, head] of the shortest spans."""

    window: int
    local_heads: list[list[int]]
    values: Values


class Fai(BaseModel):
    """values: by token of the continuation; global_heads: [layer, head] of the longest spans."""

    ahead: list[int]
    global_heads: list[list[int]]
    values: Values


class Vas(BaseModel):
    """values: [layers][heads][rows], null where nothing is before the image; mean: over all of them."""

    mean: float | None
    values: Values


class AttentionAnswer(BaseModel):
    """What was measured; parts that were not included are left out.

    tokens: as the tokenizer writes them, null without one. spans: token ranges [start, end). images: of
    each image the ranges of its keys.
    attention: [layers][heads][rows][keys]; column_mean: [layers][heads][keys]; q_similarity
    and vhd: [layers][heads].
    """

    object: Literal["attention"]
    model: str
    prompt_tokens: int
    continuation_tokens: int
    tokens: list[str] | None
    token_ids: list[int]
    layers: list[int]
    heads: list[int]
    rows: list[int]
    spans: list[list[int]]
    images: list[list[list[int]]]
    attention: Values | None = None
    column_mean: Values | None = None
    sink: Sink | None = None
    mass: Mass | None = None
    entropy: Entropy | None = None
    dormancy: Dormancy | None = None
    waad: Waad | None = None
    fai: Fai | None = None
    q_similarity: Values | None = None
    vas: Vas | None = None
    vhd: Values | None = None
    interventions: list[dict[str, Any]]
