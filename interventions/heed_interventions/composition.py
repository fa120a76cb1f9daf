"""What may stand together in one list.

The order in which edits act is fixed, whatever the order of the list (`heed_kernels.edits`): first
what is visible, then factors and biases on logits, then the softmax, then the transfer of mass
between weights, then gains on head outputs. What is observed are weights before the transfer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heed_interventions.act import ACT
from heed_interventions.head_gain import HeadGain
from heed_interventions.method import Method
from heed_interventions.streaming_llm import StreamingLLM
from heed_interventions.vision.gift import GIFT
from heed_interventions.vision.spin import SPIN
from heed_interventions.vision.var import VAR
from heed_interventions.vision.vhr import VHR
from heed_interventions.zerotuning import ZeroTuning
from heed_kernels.edits import Edit
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict
from heed_kernels.eviction_rules import check_beside, splits_window


@dataclass(frozen=True)
class Placed:
    """An intervention that is not neutral on this prompt, with its edits."""

    method: Method
    edits: Sequence[Edit]


def conflict(one: Placed, others: Sequence[Placed]) -> str | None:
    """Why `one` cannot stand beside `others`, which come before it; None when it can."""
    for other in others:
        for rule in _RULES:
            reason = rule(one, other) or rule(other, one)
            if reason:
                return reason
    return None


def repeated(method: Method, others: Sequence[Method]) -> str | None:
    """Why `method` cannot stand once more beside `others`, neutral or not; None when it can."""
    name = method.name()
    if method.repeatable or all(other.name() != name for other in others):
        return None
    return f"{name} can stand in a list only once"


def _zerotuning_of_a_hidden_token(one: Placed, other: Placed) -> str | None:
    tuning, streaming = one.method, other.method
    if not isinstance(tuning, ZeroTuning) or not isinstance(streaming, StreamingLLM):
        return None
    if tuning.position < streaming.sinks:
        return None
    return (
        f"zerotuning acts on position {tuning.position}, which streaming_llm with "
        f"{streaming.sinks} sinks hides from later rows; keep it with more `sinks`"
    )


def _sinks_of_hidden_keys(one: Placed, other: Placed) -> str | None:
    if not isinstance(one.method, ACT) or not isinstance(other.method, StreamingLLM):
        return None
    return (
        "act takes the mean of a key's weights over all rows after it, and streaming_llm hides keys "
        "from later rows"
    )


def _sinks_of_two_kinds(one: Placed, other: Placed) -> str | None:
    if not isinstance(one.method, ACT) or not isinstance(other.method, VAR):
        return None
    return "act and var both move the weight of sinks, each of its own ones; only one of them can"


def _two_comparisons_of_heads(one: Placed, other: Placed) -> str | None:
    compare = VHR | SPIN | GIFT
    if not isinstance(one.method, compare) or not isinstance(other.method, compare):
        return None
    return (
        f"{one.method.name()} and {other.method.name()} both choose among a layer's heads by what they "
        "give to the image; only one can"
    )


def _outputs_made_anew(one: Placed, other: Placed) -> str | None:
    changes = ACT | VAR | HeadGain
    if not isinstance(one.method, GIFT) or not isinstance(other.method, changes):
        return None
    return (
        f"gift makes outputs of its own weights, and {other.method.name()} changes outputs or weights "
        "after the softmax"
    )


def _hidden_images(one: Placed, other: Placed) -> str | None:
    if not isinstance(one.method, VAR | VHR | SPIN | GIFT) or not isinstance(
        other.method, StreamingLLM
    ):
        return None
    return (
        f"{one.method.name()} weighs the image's keys, and streaming_llm hides them from later rows"
    )


def _two_that_decide_what_stays(one: Placed, other: Placed) -> str | None:
    if not one.method.evicts or not (other.method.evicts or isinstance(other.method, StreamingLLM)):
        return None
    return (
        f"{one.method.name()} and {other.method.name()} both decide which keys stay in the cache; "
        "only one of them can"
    )


def _outputs_of_keys_that_are_gone(one: Placed, other: Placed) -> str | None:
    if not isinstance(one.method, GIFT) or not other.method.evicts:
        return None
    return f"gift makes outputs anew of all keys, and {other.method.name()} lets some of them go"


def _segments_in_an_observation_window(one: Placed, other: Placed) -> str | None:
    for evict in other.edits:
        if isinstance(evict, Evict) and any(splits_window(evict, edit) for edit in one.edits):
            name, evictor = one.method.name(), other.method.name()
            return (
                f"{evictor} scores its last {evict.together} prompt rows in one step, and {name} with "
                '`stats` "causal" may end a step between them: set `stats` to "full"'
            )
    return None


def _segments_in_a_whole_prompt(one: Placed, other: Placed) -> str | None:
    if not isinstance(one.method, ACT) or one.method.looks_ahead():
        return None
    if not isinstance(other.method, VHR) or not other.method.looks_ahead():
        return None
    return (
        'vhr with `rows` "all" needs the whole prompt in one step, and act with `stats` "causal" ends steps '
        'inside it: set `stats` to "full"'
    )


def _keys_that_eviction_moves(one: Placed, other: Placed) -> str | None:
    for evict in other.edits:
        if not isinstance(evict, Evict):
            continue
        try:
            check_beside(evict, one.edits)
        except EditError:
            name, evictor = one.method.name(), other.method.name()
            if evict.again:
                return (
                    f"{name} acts on chosen tokens in generated rows, and {evictor} moves and drops "
                    f"all but the {evict.sinks} sinks, generated tokens too: switch its `decode` off, "
                    f"limit {name} to prompt rows, or protect the tokens with `sinks`"
                )
            return (
                f"{name} acts on chosen prompt tokens in generated rows, and {evictor} moves and drops "
                f"all but the {evict.sinks} sinks: limit {name} to prompt rows, or protect the tokens "
                "with `sinks`"
            )
    return None


_RULES: tuple[Callable[[Placed, Placed], str | None], ...] = (
    _zerotuning_of_a_hidden_token,
    _sinks_of_hidden_keys,
    _sinks_of_two_kinds,
    _two_comparisons_of_heads,
    _outputs_made_anew,
    _hidden_images,
    _two_that_decide_what_stays,
    _outputs_of_keys_that_are_gone,
    _segments_in_an_observation_window,
    _segments_in_a_whole_prompt,
    _keys_that_eviction_moves,
)
