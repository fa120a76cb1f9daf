"""What was measured as the values of an answer."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heed_kernels.inspection import AHEAD, LOCAL_WINDOW
from heed_server.attention import measures
from heed_server.attention.asked import Asked
from heed_server.attention.body import AttentionBody, Encoding
from heed_server.attention.recordings import Arrays

DECIMALS = 7
"""To which JSON numbers are rounded."""


def measured(body: AttentionBody, asked: Asked, arrays: Arrays) -> dict[str, Any]:
    """The parts of an `AttentionAnswer` that `include` names, ready for JSON or for `archive`."""
    inspection = asked.inspection
    parts: dict[str, Any] = {}
    if "attention" in body.include:
        parts["attention"] = arrays["weights"]
    if "column_mean" in body.include:
        parts["column_mean"] = measures.column_mean(arrays["columns"])
    if "sink" in body.include:
        means = measures.column_mean(arrays["columns"])
        share, keys = measures.sink_share(means, body.epsilon)
        secondary = [
            [inspection.layers[layer], inspection.heads[head], key]
            for layer, head, key in measures.secondary_sinks(means, body.epsilon).tolist()
        ]
        parts["sink"] = {
            "epsilon": body.epsilon, "share": share, "keys": keys, "secondary": secondary,
        }  # fmt: skip
    if "mass" in body.include:
        parts["mass"] = {"position_0": arrays["mass"][..., 0]}
        if asked.spans:
            parts["mass"]["spans"] = arrays["mass"][..., 1 : 1 + len(asked.spans)]
        if asked.image is not None:
            parts["mass"]["image"] = arrays["mass"][..., asked.image]
    if "vas" in body.include and asked.image is not None:
        system = None if asked.system is None else arrays["mass"][..., asked.system]
        ratio, mean = measures.vas(arrays["mass"][..., asked.image], system)
        parts["vas"] = {"mean": mean, "values": ratio}
    if "vhd" in body.include:
        parts["vhd"] = arrays["apart"]
    if "entropy" in body.include:
        normalised = measures.normalised_entropy(arrays["entropy"], inspection.rows)
        parts["entropy"] = {"nats": arrays["entropy"], "normalised": normalised}
    if "dormancy" in body.include:
        dormancy = arrays["dormancy"]
        parts["dormancy"] = {
            "row_entropy": measures.row_entropy(dormancy),
            "column_entropy": measures.column_entropy(arrays["columns"], dormancy),
        }
    if "distance" in arrays:
        near, far = measures.extreme_heads(arrays["distance"])
        if "waad" in body.include:
            parts["waad"] = {
                "window": LOCAL_WINDOW,
                "local_heads": _pairs(near, asked),
                "values": measures.waad(arrays["distance"], near),
            }
        if "fai" in body.include:
            parts["fai"] = {
                "ahead": list(AHEAD),
                "global_heads": _pairs(far, asked),
                "values": measures.fai(arrays["ahead"], far, inspection.response),
            }
    if "q_similarity" in body.include:
        parts["q_similarity"] = arrays["queries"]
    return {name: _encoded(part, body.encoding) for name, part in parts.items()}


def _pairs(places: NDArray[np.intp], asked: Asked) -> list[list[int]]:
    """[layer, head] ids, in the model's order."""
    layers, heads = asked.inspection.layers, asked.inspection.heads
    return sorted([layers[layer], heads[head]] for layer, head in places.tolist())


def _encoded(part: Any, encoding: Encoding) -> Any:
    if isinstance(part, dict):
        return {name: _encoded(value, encoding) for name, value in part.items()}
    if not isinstance(part, np.ndarray):
        return part
    if encoding == "npz":
        return part
    return as_base64(part) if encoding == "base64" else as_lists(part)


def as_base64(values: ArrayLike) -> dict[str, Any]:
    """An `EncodedArray`."""
    array = np.ascontiguousarray(values, "<f4")
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": "float32", "shape": list(array.shape), "data": data}


def as_lists(values: ArrayLike) -> Sequence[Any]:
    """Nested lists of rounded numbers, None for NaN."""
    array = np.round(np.asarray(values, np.float64), DECIMALS)
    undefined = np.isnan(array)
    if undefined.any():
        array = array.astype(object)
        array[undefined] = None
    return list(array.tolist())


def archive(answer: Mapping[str, Any]) -> bytes:
    """An answer as a numpy archive: float32 arrays by their paths, dots between, and `document`, a
    string with everything else as JSON."""
    arrays: dict[str, NDArray[np.float32]] = {}
    document = json.dumps(_without_arrays(answer, "", arrays), ensure_ascii=False)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, document=np.array(document), **arrays)
    return file.getvalue()


def _without_arrays(
    part: Mapping[str, Any], path: str, arrays: dict[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """`part` without its arrays, which go into `arrays`, and without what would then be empty."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, np.ndarray):
            arrays[where] = value.astype(np.float32)
        elif not isinstance(value, Mapping):
            kept[name] = value
        elif inner := _without_arrays(value, where, arrays):
            kept[name] = inner
    return kept
