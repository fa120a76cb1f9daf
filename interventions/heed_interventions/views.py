"""What a method may know when it is resolved: the model, the prompt, its place in the request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from heed_interventions.errors import InterventionError, Reason, join_path
from heed_interventions.text.token_text import TokenText
from heed_kernels.edits import KeyRanges


@dataclass(frozen=True)
class ModelView:
    """The model being served.

    max_length: tokens of prompt and answer together that the server accepts.
    vision: whether it takes images.
    unsupported: why edited requests are refused on this model or server; None when they are not.
    eviction_obstacle: why methods that evict are, where others are not; None when they are not.
    rotary: whether positions can be rolled (rotary embeddings with frequencies that do not change).
    max_key_ranges: how many ranges of keys one edit may name.
    longest_step: tokens that one step holds; None where that is not known.
    hidden_size: of the hidden states; 0 where that is not known.
    inputs_obstacle: why methods that look at hidden states are refused; None when they are not.
    sink_dims: dimensions of the hidden states in which sinks stand out, where they are known.
    companion_obstacle: why the prompt cannot be run once more without its image; None when it can.
    patches: of an image, each of which stands for a token; None where that is not known.
    tower_obstacle: why methods that look at the image encoder's class token are refused; None when they are not.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    max_length: int
    vision: bool = False
    unsupported: str | None = None
    eviction_obstacle: str | None = None
    rotary: bool = True
    max_key_ranges: int = 256
    longest_step: int | None = None
    hidden_size: int = 0
    inputs_obstacle: str | None = None
    sink_dims: tuple[int, ...] = ()
    companion_obstacle: str | None = None
    patches: int | None = None
    tower_obstacle: str | None = None


@dataclass(frozen=True)
class ImageSpan:
    """Positions [start, end) of one image's placeholder, row and end markers included.

    keys: those that hold the image itself, as sorted ranges that do not touch; all of them where it is
        left out.
    """

    start: int
    end: int
    keys: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.keys:
            object.__setattr__(self, "keys", ((self.start, self.end),))


def needs_image(what: str, *, vision: bool) -> str:
    """Why `what` cannot be had without one; vision: whether the model takes images at all."""
    lacking = "this prompt has none" if vision else "this model takes text only"
    return f"{what} needs an image, and {lacking}"


Keys = tuple[tuple[int, int], ...]
"""Positions as ranges [start, end), ascending."""


def keys_of_images(images: Sequence[ImageSpan]) -> tuple[Keys, Keys]:
    """The keys of all images together, and those before the first one; empty where there are none."""
    if not images:
        return (), ()
    start = images[0].start
    keys = tuple(keys for image in images for keys in image.keys)
    return keys, ((0, start),) if start else ()


@dataclass(frozen=True)
class PromptView:
    """The final prompt of one engine request.

    length: P, the number of prompt tokens, at least 1.
    text: builds the alignment of tokens and characters when a span asks for it; None where the
        server has no tokenizer. Called at most once.
    images: in order of position.
    """

    length: int
    text: Callable[[], TokenText] | None = None
    images: tuple[ImageSpan, ...] = ()

    @cached_property
    def token_text(self) -> TokenText | None:
        """The prompt's text with its alignment. Raises `AlignmentError` where there is none."""
        return None if self.text is None else self.text()


@dataclass(frozen=True)
class RequestView:
    """One intervention's surroundings.

    path: where it stands in the request, such as `interventions.0`.
    source: its index there, which its edits carry.
    report: what the method has to say of itself; `Method.edits` fills it.
    """

    model: ModelView
    prompt: PromptView
    path: str
    source: int
    report: dict[str, object] = field(default_factory=dict)

    def error(self, field_name: str, message: str, reason: Reason) -> InterventionError:
        """A 400 for one field of this intervention, to be raised by the caller."""
        return InterventionError(message, join_path(self.path, field_name), reason=reason)

    def check_one_step(self, field_name: str, value: str, instead: str) -> None:
        """Raises `InterventionError` where a step does not hold the whole prompt.

        field_name, value: the parameter that needs it in one step. instead: its value that does not.
        """
        longest, length = self.model.longest_step, self.prompt.length
        if longest is not None and length > longest:
            raise self.error(
                field_name,
                f'"{value}" needs the whole prompt in one step, which holds {longest} tokens here; '
                f'this prompt has {length}. "{instead}" takes prompts of any length',
                "context",
            )

    def images(self, field_name: str, value: str) -> tuple[ImageSpan, ...]:
        """The prompt's images, at least one. Raises `InterventionError` when there is none.

        field_name, value: the parameter that asks for an image, for the message.
        """
        if not self.model.vision or not self.prompt.images:
            raise self.error(field_name, needs_image(value, vision=self.model.vision), "vision")
        return self.prompt.images

    def image_end(self, field_name: str, value: str) -> int:
        """Position after the last image. Raises as `images` does."""
        return self.images(field_name, value)[-1].end

    def system_keys(self, method: str) -> KeyRanges:
        """The keys before the first image, BOS among them; none where the prompt begins with it.

        method: its name. Raises as `images` does.
        """
        start = self.images("method", method)[0].start
        return KeyRanges(((0, start),) if start else ())

    def visual_keys(self, method: str) -> KeyRanges:
        """The keys of all images together, noted as `image_keys` in the report.

        method: its name. Raises as `images` does, and where there are too many ranges.
        """
        ranges = [keys for image in self.images("method", method) for keys in image.keys]
        most = self.model.max_key_ranges
        if len(ranges) > most:
            raise self.error(
                "method",
                f"the prompt's images lie in {len(ranges)} pieces; at most {most} are allowed",
                "vision",
            )
        self.report["image_keys"] = [list(pair) for pair in ranges]
        return KeyRanges(tuple(ranges))
