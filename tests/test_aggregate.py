"""What the server computes is a mean, and refuses what has none."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedlib as fl

ONE = {"a": torch.tensor([1.0, 2.0]), "b": torch.ones(2, 1)}


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=5).filter(any), st.integers(0, 99))
def test_the_average_is_numpys_whatever_the_weights_scale(weights, seed):
    values = np.random.default_rng(seed).standard_normal((len(weights), 3))
    found = fl.weighted_average([{"w": torch.tensor(v)} for v in values], np.array(weights))["w"]
    shares = np.array(weights) / max(weights)
    np.testing.assert_allclose(found, shares @ values / shares.sum(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64])
def test_the_average_of_equal_clients_is_they_in_every_precision(dtype):
    one = {"w": torch.tensor([1.0, 0.1]).to(dtype)}
    assert torch.equal(fl.weighted_average([one] * 1000, np.ones(1000))["w"], one["w"])


def test_a_client_of_weight_zero_does_not_count():
    broken = {name: p * np.nan for name, p in ONE.items()}
    for order in ([ONE, broken], [broken, ONE]):
        weights = np.array([float(client is ONE) for client in order])
        average = fl.weighted_average(order, weights)
        assert all(torch.equal(average[name], ONE[name]) for name in ONE)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (
            {"a": torch.ones(1), "b": torch.ones(2, 1)},
            ValueError,
            "a is missing.* shape",
        ),
        ({"a": torch.ones(2), "b": torch.ones(2, 1).double()}, ValueError, "b is missing.* dtype"),
        (ONE | {"c": torch.ones(1)}, ValueError, "c is missing"),
        ({"a": torch.ones(2)}, ValueError, "b is missing"),
        (ONE | {"a": None}, TypeError, "not a Tensor"),
        (ONE | {"a": torch.tensor([1, 2])}, ValueError, "whole numbers have no average"),
        (ONE | {"a": torch.ones(2).to(torch.float8_e5m2)}, TypeError, "no average of it"),
        (ONE | {"a": torch.ones(2).to_sparse()}, TypeError, "no average of it"),
        (ONE | {"a": torch.ones(2, device="meta")}, TypeError, "no average of it"),
        (None, TypeError, "not a dict"),
    ],
)
def test_parameters_that_are_not_alike_are_refused(other, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        fl.weighted_average([ONE, other], np.ones(2))
    with pytest.raises(error, match=message):
        fl.server_step(ONE, other)


@pytest.mark.parametrize(
    ("params", "weights", "message"),
    [
        ([], [], "Invalid params: none"),
        ([ONE], [1, 2], r"Invalid weights: its shape is \(2,\)"),
        ([ONE, ONE], [1, -1], "must not be negative"),
        ([ONE, ONE], [0, 0], "not all zero"),
        ([ONE, ONE], [1, np.inf], "NaN or infinity"),
    ],
)
def test_weights_that_give_no_mean_are_refused(params, weights, message):
    with pytest.raises(ValueError, match=message):
        fl.weighted_average(params, np.array(weights, dtype=float))


@pytest.mark.parametrize("server_lr", [0.0, -1.0, float("nan"), float("inf"), 1e200])
def test_a_server_step_size_is_positive_and_finite(server_lr):
    with pytest.raises(ValueError, match="Invalid server_lr"):
        fl.server_step(ONE, ONE, server_lr=server_lr)
