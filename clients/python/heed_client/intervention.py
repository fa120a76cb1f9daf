"""What all interventions have in common, and how a list of them is written into a request."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field


class Parameters(BaseModel):
    """A part of an intervention: unknown fields and wrong values are refused where it is built."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True
    )


class Intervention(Parameters):
    """A method with its parameters; see `heed_client.methods`."""

    method: str
    profile: str | None = Field(
        default=None,
        max_length=64,
        description="Name of a profile whose parameters hold where none are written beside it.",
    )
    report: Literal["summary", "full"] = Field(
        default="summary", description='"full" adds the long parts of the report.'
    )

    def body(self) -> dict[str, Any]:
        """As it stands in a request. What was not written is left to the server, or to the profile."""
        written = self.model_dump(mode="json", exclude_unset=True, by_alias=True)
        return {"method": self.method, **written}


Interventions: TypeAlias = Sequence[Intervention | Mapping[str, Any]]
"""Builders and plain objects, in any mixture."""


def from_profile(method: str, profile: str, **parameters: Any) -> dict[str, Any]:
    """An intervention whose parameters come from one of the server's profiles; those written win."""
    return {"method": method, "profile": profile, **parameters}


def bodies(interventions: Interventions) -> list[dict[str, Any]]:
    """A list as it stands in a request's field `interventions`."""
    return [item.body() if isinstance(item, Intervention) else dict(item) for item in interventions]


def extra_body(interventions: Interventions) -> dict[str, Any]:
    """The `extra_body` of a call of the openai package."""
    return {"interventions": bodies(interventions)}
