"""Answers of `POST /v1/attention` from what workers measured, against dense float64 weights."""

import base64
import io
import json
import math

import numpy as np
import pytest

from heed_kernels.inspection import AHEAD, LOCAL_WINDOW
from heed_server.attention import measures
from heed_server.attention.answer import archive, as_base64, as_lists
from heed_server.attention.recordings import of_all_workers

LAYERS, HEADS, LENGTH, RESPONSE = 3, 4, 160, 120


def weights(seed: int = 0) -> np.ndarray:
    """float64 [layers, heads, rows, keys], causal; heads differ in how far they look."""
    random = np.random.default_rng(seed)
    q, k = np.arange(LENGTH)[:, None], np.arange(LENGTH)
    slope = random.uniform(-0.1, 0.3, (LAYERS, HEADS, 1, 1))
    logits = random.normal(size=(LAYERS, HEADS, LENGTH, LENGTH)) - slope * (q - k)
    logits[..., 0] += 3
    logits = np.where(k <= q, logits, -np.inf)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def test_a_key_is_averaged_over_the_rows_that_see_it() -> None:
    dense = weights()
    mean = measures.column_mean(dense.sum(axis=2))
    for key in (0, 7, LENGTH - 1):
        np.testing.assert_allclose(mean[..., key], dense[:, :, key:, key].mean(axis=-1))
    share, keys = measures.sink_share(mean, 0.3)
    assert share[1, 2] == (mean[1, 2] > 0.3).sum() / LENGTH
    assert keys[0] == (mean[..., 0] > 0.3).sum() / (LAYERS * HEADS)


def test_secondary_sinks_are_keys_behind_the_first_that_enough_rows_see() -> None:
    means = np.zeros((2, 2, 20))
    means[0, 0, 0] = means[1, 0, 3] = means[1, 1, 4] = means[0, 1, 5] = means[0, 1, 19] = 0.9
    assert measures.secondary_sinks(means, 0.3).tolist() == [[1, 0, 3], [1, 1, 4]]
    assert measures.secondary_sinks(means[..., :10], 0.3).tolist() == []


def test_vas_is_the_mass_on_the_image_over_that_before_it() -> None:
    dense = weights()[:, :, 100:]
    image, system = dense[..., 20:40].sum(axis=-1), dense[..., :20].sum(axis=-1)
    ratio, mean = measures.vas(image, system)
    np.testing.assert_allclose(ratio, image / system)
    assert mean == pytest.approx((image / system).mean())
    nothing_before, none = measures.vas(image, None)
    assert np.isnan(nothing_before).all() and none is None


def test_equal_weights_have_a_normalised_entropy_of_one() -> None:
    rows = np.array([0, 1, 9])
    made = measures.normalised_entropy(np.log(rows + 1.0)[None, None], rows)
    assert np.isnan(made[0, 0, 0])
    np.testing.assert_allclose(made[0, 0, 1:], 1)


def test_dormancy_is_the_mean_row_entropy_and_the_largest_column_entropy() -> None:
    dense = weights()
    logs = dense * np.log(np.where(dense > 0, dense, 1))
    normalised = -logs.sum(axis=-1)[..., 1:] / np.log(np.arange(2, LENGTH + 1))
    measured = np.concatenate([normalised.sum(axis=-1)[..., None], logs.sum(axis=2)], axis=-1)
    np.testing.assert_allclose(measures.row_entropy(measured), normalised.mean(axis=-1))
    largest = np.zeros((LAYERS, HEADS))
    for key in range(LENGTH - 1):
        column = dense[:, :, key:, key]
        share = column / column.sum(axis=-1, keepdims=True)
        entropy = -(share * np.log(share)).sum(axis=-1) / math.log(LENGTH - key)
        largest = np.maximum(largest, entropy)
    actual = measures.column_entropy(dense.sum(axis=2), measured)
    np.testing.assert_allclose(actual, largest, atol=1e-9)
    assert (actual <= 1 + 1e-9).all()


def test_one_token_has_no_dormancy() -> None:
    measured = np.zeros((1, 1, 2), np.float32)
    assert np.isnan(measures.row_entropy(measured)).all()
    assert np.isnan(measures.column_entropy(np.ones((1, 1, 1)), measured)).all()


def response_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, and the arrays `distance` and `ahead` by definition."""
    dense = weights()
    gap = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    rows = dense[:, :, RESPONSE:]
    near = np.minimum(gap, LOCAL_WINDOW)[RESPONSE:]
    distance = np.stack([(rows * gap[RESPONSE:]).sum(-1), (rows * near).sum(-1)], axis=-1)
    inside = (gap >= AHEAD[0]) & (gap <= AHEAD[1])
    ahead = (rows * inside[RESPONSE:]).sum(axis=2)
    return dense, distance, ahead


def test_waad_and_fai_are_those_of_maps_averaged_over_local_and_global_heads() -> None:
    dense, distance, ahead = response_maps()
    near, far = measures.extreme_heads(distance.astype(np.float32))
    spans = distance[..., 0].mean(axis=-1).ravel()
    order = np.argsort(spans)
    flat = dense.reshape(-1, LENGTH, LENGTH)
    assert len(near) == len(far) == 3
    assert {a * HEADS + b for a, b in near} == set(order[:3])
    assert {a * HEADS + b for a, b in far} == set(order[-3:])
    local, wide = flat[order[:3]].mean(axis=0), flat[order[-3:]].mean(axis=0)
    waad = measures.waad(distance.astype(np.float32), near)
    fai = measures.fai(ahead.astype(np.float32), far, RESPONSE)
    for token in range(RESPONSE, LENGTH):
        expected = sum(local[token, s] * min(token - s, LOCAL_WINDOW) for s in range(token + 1))
        assert waad[token - RESPONSE] == pytest.approx(expected, abs=1e-5)
        rows = range(token + AHEAD[0], min(LENGTH - 1, token + AHEAD[1]) + 1)
        if rows:
            expected = np.mean([wide[t, token] for t in rows])
            assert fai[token - RESPONSE] == pytest.approx(expected, abs=1e-6)
        else:
            assert np.isnan(fai[token - RESPONSE])
    assert (waad >= 0).all() and (waad <= LOCAL_WINDOW).all()


def test_one_head_is_both_local_and_global() -> None:
    near, far = measures.extreme_heads(np.ones((1, 1, 5, 2), np.float32))
    assert near.tolist() == far.tolist() == [[0, 0]]


def test_lists_are_rounded_and_say_null_where_nothing_is_defined() -> None:
    values = np.array([[1 / 3, np.nan], [0, 1]])
    assert as_lists(values) == [[0.3333333, None], [0, 1]]


def test_base64_is_the_array() -> None:
    values = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    made = as_base64(values)
    assert made["shape"] == [1, 2, 3] and made["dtype"] == "float32"
    data = np.frombuffer(base64.b64decode(made["data"]), "<f4").reshape(made["shape"])
    np.testing.assert_array_equal(data, values)


def test_an_archive_has_the_arrays_by_path_and_the_rest_as_a_document() -> None:
    first = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    answer = {
        "model": "m", "rows": [1], "mass": {"position_0": first}, "attention": first + 1,
        "sink": {"epsilon": 0.3, "share": first},
    }  # fmt: skip
    with np.load(io.BytesIO(archive(answer)), allow_pickle=False) as made:
        assert set(made) == {"mass.position_0", "attention", "sink.share", "document"}
        assert made["mass.position_0"].dtype == np.float32
        np.testing.assert_array_equal(made["attention"], first + 1)
        document = json.loads(str(made["document"]))
    assert document == {"model": "m", "rows": [1], "sink": {"epsilon": 0.3}}


def worker(heads: list[int], failure: str | None = None) -> dict[str, object]:
    array = np.array([heads], "<f4")
    return {
        "failure": failure,
        "heads": heads,
        "arrays": {"queries": [list(array.shape), array.tobytes()]},
    }


def test_ranks_are_put_together_in_the_order_of_their_heads() -> None:
    engines = [[None, None], [worker([3, 5]), worker([]), worker([0, 1])]]
    assert of_all_workers(engines)["queries"].tolist() == [[0, 1, 3, 5]]


@pytest.mark.parametrize(
    ("workers", "message"),
    [([None], "no longer"), ([worker([0]), worker([1], "row 3 came")], "row 3 came")],
)
def test_what_was_not_measured_is_an_error(workers: list[object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        of_all_workers([workers])
