"""What the workers of every engine answer about one request, put together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]


def of_all_workers(engines: Sequence[Sequence[Mapping[str, Any] | None]]) -> Arrays:
    """float32 [layers, heads, …] by quantity, heads ascending.

    engines: answers of `EditsInWorker.heed_inspection` by engine and worker. One engine ran the
    request; its tensor-parallel workers have heads of their own.

    Raises:
        RuntimeError: nobody knows the request, or it was not measured.
    """
    for workers in engines:
        answers = [answer for answer in workers if answer is not None]
        if not answers:
            continue
        failure = next((answer["failure"] for answer in answers if answer["failure"]), None)
        if failure is not None:
            raise RuntimeError(f"the attention was not measured: {failure}")
        parts = sorted((a for a in answers if a["heads"]), key=lambda answer: answer["heads"][0])
        return {
            name: np.concatenate([_array(*part["arrays"][name]) for part in parts], axis=1)
            for name in parts[0]["arrays"]
        }
    raise RuntimeError("the workers no longer have what was measured")


def _array(shape: Sequence[int], data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(shape)
