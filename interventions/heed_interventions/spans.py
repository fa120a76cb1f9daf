"""Spans of the prompt: how a request writes them, and which tokens they are."""

from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from heed_interventions.errors import InterventionError, join_path, quote
from heed_interventions.text.token_text import AlignmentError, TokenText
from heed_interventions.views import RequestView

_POSITION_BOUND = 2**31 - 1

MOST_OCCURRENCES = 1_024
"""Occurrences of texts, and pieces of images, that the spans of one intervention come to at most, those
counted that come before the one that is asked for. A prompt is searched while other requests wait."""

Range = tuple[int, int]


class _Span(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TextSpan(_Span):
    """A text of the prompt, found by exact code points."""

    text: str = Field(
        min_length=1, max_length=65_536, description="Text to look for in the prompt."
    )
    occurrence: Annotated[
        Annotated[Literal["all"], Tag("<text>")]
        | Annotated[int, Field(ge=1, le=MOST_OCCURRENCES), Tag("<int>")],
        Discriminator(lambda value: "<text>" if isinstance(value, str) else "<int>"),
    ] = Field(
        default=1,
        description='Which occurrence, 1-based, or "all". The spans together look at no more than '
        f"{MOST_OCCURRENCES:,} occurrences.",
    )


class PositionSpan(_Span):
    """Token positions of the prompt."""

    start: int = Field(ge=0, le=_POSITION_BOUND, description="First token position.")
    end: int = Field(ge=0, le=_POSITION_BOUND, description="Past the last token position.")


class PictureSpan(_Span):
    """The keys that hold an image of the prompt."""

    image: Annotated[
        Annotated[Literal["all"], Tag("<text>")]
        | Annotated[int, Field(ge=1, le=1_000_000), Tag("<int>")],
        Discriminator(lambda value: "<text>" if isinstance(value, str) else "<int>"),
    ] = Field(description='Which image of the prompt, 1-based, or "all".')


_SHAPES: tuple[tuple[str, type[_Span]], ...] = (
    ("<text>", TextSpan),
    ("<positions>", PositionSpan),
    ("<picture>", PictureSpan),
)
SPAN_FIELDS = frozenset(name for _, kind in _SHAPES for name in kind.model_fields)
"""Every field that some span has."""


def _span_shape(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return next((tag for tag, kind in _SHAPES if isinstance(value, kind)), None)
    if not isinstance(value, dict):
        return None
    return next((tag for tag, kind in _SHAPES if value.keys() & kind.model_fields), None)


Span = Annotated[
    Annotated[TextSpan, Tag("<text>")]
    | Annotated[PositionSpan, Tag("<positions>")]
    | Annotated[PictureSpan, Tag("<picture>")],
    Discriminator(
        _span_shape,
        custom_error_type="wrong_type",
        custom_error_message='must be {"text": "…", "occurrence": 1}, {"start": 5, "end": 9} or '
        '{"image": 1}',
    ),
]
Spans = Annotated[
    list[Span], Field(min_length=1, max_length=64, description="Parts of the prompt.")
]


def find_spans(
    spans: list[TextSpan | PositionSpan | PictureSpan], request: RequestView, field: str = "spans"
) -> list[Range]:
    """Token ranges [start, end) in the order of `spans`, one per occurrence, and one per piece of an image.

    Raises `InterventionError` (reason `span`) for a text or an image that is not there, for
    positions outside of the prompt and for more than MOST_OCCURRENCES, (reason `vision`) where there
    is no image at all. Notes the ranges in the report. field: the parameter that they stand in.
    """
    found: list[Range] = []
    left = MOST_OCCURRENCES
    for index, span in enumerate(spans):
        path = join_path(request.path, field, index)
        if isinstance(span, TextSpan):
            ranges = _by_text(span, request, path, left)
            left -= len(ranges) if span.occurrence == "all" else span.occurrence
            found += ranges
        elif isinstance(span, PictureSpan):
            ranges = _by_image(span, request, f"{field}.{index}.image", left)
            left -= len(ranges)
            found += ranges
        else:
            found.append(_by_position(span, request, path))
    request.report[field] = [list(span) for span in found]
    return found


def union(ranges: Iterable[Range]) -> list[Range]:
    """The same positions as sorted ranges that neither overlap nor touch, none of them empty."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def complement(ranges: Iterable[Range], length: int) -> list[Range]:
    """Positions of [0, length) that are in none of `ranges`, as sorted disjoint ranges."""
    outside: list[Range] = []
    at = 0
    for start, end in union(ranges):
        if start > at:
            outside.append((at, min(start, length)))
        at = max(at, end)
    if at < length:
        outside.append((at, length))
    return outside


def _by_position(span: PositionSpan, request: RequestView, path: str) -> Range:
    length = request.prompt.length
    if span.start >= span.end:
        raise InterventionError(
            f"the span [{span.start}, {span.end}) is empty: `end` is exclusive and must be above "
            "`start`",
            join_path(path, "end"),
            reason="span",
        )
    if span.end > length:
        raise InterventionError(
            f"the span [{span.start}, {span.end}) ends beyond the prompt of {length} tokens",
            join_path(path, "end"),
            reason="span",
        )
    return span.start, span.end


def _by_image(span: PictureSpan, request: RequestView, field: str, left: int) -> list[Range]:
    images = request.images(field, "a span of an image")
    if span.image == "all":
        found = [keys for image in images for keys in image.keys]
    elif span.image <= len(images):
        found = list(images[span.image - 1].keys)
    else:
        raise request.error(
            field, f"the prompt has {len(images)} images, so there is no image {span.image}", "span"
        )
    if len(found) > left:
        raise _too_many(join_path(request.path, field))
    return found


def _by_text(span: TextSpan, request: RequestView, path: str, left: int) -> list[Range]:
    """left: so many occurrences may be looked at."""
    text = _prompt_text(request, path)
    if span.occurrence == "all":
        found = list(islice(text.find(span.text), left + 1))
        if len(found) > left:
            raise _too_many(join_path(path, "occurrence"))
    elif span.occurrence > left:
        raise _too_many(join_path(path, "occurrence"))
    else:
        found = list(islice(text.find(span.text), span.occurrence))
        if 0 < len(found) < span.occurrence:
            raise InterventionError(
                f"{quote(span.text)} stands {len(found)} times in the prompt, so it has no "
                f"occurrence {span.occurrence}",
                join_path(path, "occurrence"),
                reason="span",
            )
        found = found[-1:]
    if not found:
        raise InterventionError(
            f"{quote(span.text)} was not found in the prompt; it is searched for exactly, in the "
            "prompt as the model reads it (chat template and special tokens included)",
            join_path(path, "text"),
            reason="span",
        )
    return found


def _too_many(path: str) -> InterventionError:
    return InterventionError(
        f"the spans together look at more than {MOST_OCCURRENCES:,} occurrences of texts or pieces of "
        "images; give `start` and `end`",
        path,
        reason="span",
    )


def _prompt_text(request: RequestView, path: str) -> TokenText:
    try:
        text = request.prompt.token_text
    except AlignmentError as error:
        raise InterventionError(
            f"a text cannot be searched for in this prompt ({error}); give `start` and `end`",
            join_path(path, "text"),
            reason="span",
        ) from error
    if text is None:
        raise InterventionError(
            "a text cannot be searched for without a tokenizer; give `start` and `end`",
            join_path(path, "text"),
            reason="span",
        )
    return text
