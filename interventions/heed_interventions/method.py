"""What every method answers: its parameters, whether they do anything, and their edits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from heed_interventions.selectors import (
    every_head,
    first_row_by_length,
    select_heads,
    select_layers,
    select_rows,
)
from heed_interventions.views import ModelView, RequestView, needs_image
from heed_kernels.edits import Edit, HeadSet, Rows


class CacheClass(StrEnum):
    """How an edited request shares the prefix cache.

    shared: no prompt row whose keys could be reused is edited; plain blocks are read.
    salted: the edit is causal; blocks are shared among equal edits only.
    private: the edit is not causal; nothing is read and nothing is published.
    """

    SHARED = "shared"
    SALTED = "salted"
    PRIVATE = "private"


class Method(BaseModel, ABC):
    """A method with its parameters: an intervention.

    A subclass is one file: a `method` literal, the class attributes below, fields, `is_neutral`
    and `edits`. Fields with the names `layers`, `heads` and `rows` have the meaning of
    `selectors.py`, and a method without one of them acts on all.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    cache: ClassVar[CacheClass]
    """The class with default parameters; a request's own follows from the rows that it edits."""
    repeatable: ClassVar[bool] = False
    """Whether it may stand in a list more than once."""
    needs_image: ClassVar[bool] = False
    reads_inputs: ClassVar[bool] = False
    """Whether it needs the hidden states at the layers' inputs."""
    reads_tower: ClassVar[bool] = False
    """Whether it needs the attention of the image encoder's class token."""
    evicts: ClassVar[bool] = False
    """Whether it takes keys out of the cache by their scores."""
    can_be_privileged: ClassVar[bool] = False
    """Whether some parameters of it are privileged."""
    exclusive: ClassVar[tuple[str, ...]] = ()
    """Fields that say the same, null by default: one of them at most is written."""
    of_the_prompt: ClassVar[Mapping[str, Any]] = {}
    """Fields that every request has to write because they are of its prompt, with values that fit any."""

    method: str
    profile: str | None = Field(
        default=None,
        max_length=64,
        description="Name of a profile whose parameters hold where none are written beside it.",
    )
    report: Literal["summary", "full"] = Field(
        default="summary", description='"full" adds the long parts of the report.'
    )

    @abstractmethod
    def is_neutral(self, model: ModelView) -> bool:
        """Whether these parameters are the identity on `model`, whatever the prompt."""

    @abstractmethod
    def edits(self, request: RequestView) -> Iterator[Edit]:
        """The edits, with every check against the model and the prompt made on the way.

        Called for neutral parameters as well, for the checks. What was resolved goes to
        `request.report`. Raises `InterventionError`.
        """

    def privileged_parameter(self) -> str | None:
        """The field whose value needs `--allow-privileged-interventions`; None where none does."""
        return None

    def bounds_positions(self, model: ModelView) -> bool:
        """Whether rows keep to positions inside the model's context however long the sequence gets."""
        return False

    def looks_ahead(self) -> bool:
        """Whether rows depend on later ones: then the prefix cache is neither read nor written."""
        return self.cache is CacheClass.PRIVATE

    def publication_limit(self, prompt_length: int) -> int | None:
        """First row whose edit depends on the prompt's length; None where none does.

        Keys and values of rows from there on must not enter the prefix cache: under another
        continuation of the same tokens they would be different.
        """
        return first_row_by_length(getattr(self, "rows", "all"), prompt_length)

    def default_layers(self, model: ModelView) -> Sequence[int]:
        """Layers where the request names none; they are clipped to the model."""
        return range(model.layers)

    @classmethod
    def obstacle(cls, model: ModelView) -> str | None:
        """Why no request can use it on `model`; None where one can."""
        if model.unsupported is not None:
            return model.unsupported
        if cls.needs_image and not model.vision:
            return needs_image(cls.name(), vision=False)
        if cls.reads_inputs and model.inputs_obstacle is not None:
            return model.inputs_obstacle
        if cls.reads_tower and model.tower_obstacle is not None:
            return model.tower_obstacle
        return model.eviction_obstacle if cls.evicts else None

    @classmethod
    def name(cls) -> str:
        """What a request writes as `method`."""
        return str(cls.model_fields["method"].default)

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Its fields by the names that requests write."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}

    def wrote(self, field: str) -> bool:
        """Whether the user wrote this field; only the method's own values are clipped."""
        return field in self.model_fields_set

    def on(self, request: RequestView) -> HeadSet:
        """The pairs of layer and head that are selected. Raises `InterventionError`."""
        fields: dict[str, Any] = self.__dict__
        if "layers" not in fields and "heads" not in fields:
            return every_head(request.model)
        heads = fields.get("heads", "all")
        layers: list[int] = []
        if not isinstance(heads, dict):
            default = None if self.wrote("layers") else self.default_layers(request.model)
            layers = select_layers(fields["layers"], default, request.model, request.path)
        return select_heads(layers, heads, request.model, request.path)

    def on_rows(self, request: RequestView) -> Rows:
        """The rows that are selected. Raises `InterventionError`."""
        return select_rows(getattr(self, "rows", "all"), request)

    def clipped_window(self, window: int, request: RequestView) -> int:
        """`window`, clipped to the context when it is the method's own.

        Raises `InterventionError` (reason `context`) when the user wrote one beyond it.
        """
        longest = request.model.max_length
        if self.wrote("window") and window > longest:
            raise request.error(
                "window",
                f"a window of {window} is beyond the context of {longest} tokens",
                "context",
            )
        return min(window, longest)

    @model_validator(mode="after")
    def _one_of_the_exclusive(self) -> Self:
        written = [field for field in self.exclusive if getattr(self, field) is not None]
        if len(written) > 1:
            raise PydanticCustomError(
                "exclusive",
                "must be left out beside `{first}`: they say the same",
                {"field": written[1], "first": written[0]},
            )
        return self

    @model_validator(mode="after")
    def _heads_or_layers(self) -> Self:
        if isinstance(getattr(self, "heads", None), dict) and self.wrote("layers"):
            raise PydanticCustomError(
                "exclusive",
                "must be left out where `heads` is an object: its keys are the layers",
                {"field": "layers"},
            )
        return self
