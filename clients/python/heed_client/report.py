"""What a server says of the interventions that it carried out."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    """What became of one intervention; what its method measured stands in `model_extra`.

    Rows are distinct positions in its scope: of the prompt, those of them that came out of the prefix
    cache, and generated ones. `reason` says why it was skipped.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str
    status: Literal["applied", "neutral", "skipped"]
    source: Literal["request", "default"]
    layer_count: int | None = None
    head_count: int | None = None
    cache: Literal["shared", "salted", "private"] | None = None
    prompt_rows: int | None = None
    cached_rows: int | None = None
    generated_rows: int | None = None
    reason: str | None = None
    profile: str | None = None

    def measured(self) -> dict[str, Any]:
        """The method's own part: resolved spans, found sinks, freed blocks and the like."""
        return dict(self.model_extra or {})


def reports(answer: Any, choice: int = 0) -> list[Report]:
    """The reports of one choice of an answer.

    answer: of the openai package's chat, completions or responses, whole or a chunk of a stream; or
    the JSON of one. Empty where it carries none, as all chunks of a stream but the last do.
    """
    found = _field(answer, "interventions")
    if found is None and (response := _field(answer, "response")) is not None:
        found = _field(response, "interventions")
    if choice:
        found = next(
            (
                _field(each, "interventions")
                for each in _field(answer, "choices") or ()
                if _field(each, "index") == choice
            ),
            None,
        )
    return [Report.model_validate(each) for each in found or ()]


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
