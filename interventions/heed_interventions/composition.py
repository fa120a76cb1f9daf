"""What may stand together in one list.

The order in which edits act is fixed, whatever the order of the list (`heed_kernels.edits`): first
what is visible, then factors and biases on logits, then the softmax, then the transfer of mass
between weights, then gains on head outputs. What is observed are weights before the transfer.
"""

from collections.abc import Callable, Sequence

from heed_interventions.act import ACT
from heed_interventions.method import Method
from heed_interventions.streaming_llm import StreamingLLM
from heed_interventions.zerotuning import ZeroTuning


def conflict(method: Method, others: Sequence[Method]) -> str | None:
    """Why `method` cannot stand beside `others`, or None when it can.

    others: the interventions before it in the list; neither they nor `method` are neutral.
    """
    for other in others:
        for rule in _RULES:
            reason = rule(method, other) or rule(other, method)
            if reason:
                return reason
    return None


def repeated(method: Method, others: Sequence[Method]) -> str | None:
    """Why `method` cannot stand once more beside `others`, neutral or not; None when it can."""
    name = method.name()
    if method.repeatable or all(other.name() != name for other in others):
        return None
    return f"{name} can stand in a list only once"


def _zerotuning_of_a_hidden_token(method: Method, other: Method) -> str | None:
    if not isinstance(method, ZeroTuning) or not isinstance(other, StreamingLLM):
        return None
    if method.position < other.sinks:
        return None
    return (
        f"zerotuning acts on position {method.position}, which streaming_llm with {other.sinks} "
        "sinks hides from later rows; keep it with more `sinks`"
    )


def _sinks_of_hidden_keys(method: Method, other: Method) -> str | None:
    if not isinstance(method, ACT) or not isinstance(other, StreamingLLM):
        return None
    return (
        "act takes the mean of a key's weights over all rows after it, and streaming_llm hides keys "
        "from later rows"
    )


_RULES: tuple[Callable[[Method, Method], str | None], ...] = (
    _zerotuning_of_a_hidden_token,
    _sinks_of_hidden_keys,
)
