"""ClientData holds what it was given, and refuses what no run could use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlib as fl


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_from_parts_returns_each_clients_examples(sizes, seed):
    rng = np.random.default_rng(seed)
    images, labels = rng.random((20, 1, 2, 2)), rng.integers(3, size=20)
    parts = [rng.integers(20, size=size) for size in sizes]  # may overlap
    clients = fl.ClientData.from_parts(images, labels, parts)
    assert len(clients) == clients.num_clients == len(sizes)
    for i, part in enumerate(parts):
        x, y = clients[i]
        np.testing.assert_array_equal(x, images[part])
        np.testing.assert_array_equal(y, labels[part])


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_split_is_a_partition_of_every_client(sizes, fraction):
    n = sum(sizes)
    clients = fl.ClientData(torch.arange(n), torch.zeros(n, dtype=torch.int64), np.array(sizes))
    train, test = clients.split(fraction, rng=np.random.default_rng(0))
    for i, size in enumerate(sizes):
        both = torch.cat([train[i][0], test[i][0]]).tolist()
        assert sorted(both) == clients[i][0].tolist()
        assert train.sizes[i] == min(max(round(fraction * size), 1), size - 1)


def test_select_keeps_order():
    clients = fl.ClientData(torch.arange(6), torch.zeros(6, dtype=torch.int64), np.array([1, 2, 3]))
    chosen = clients.select([2, 0])
    assert chosen.inputs.tolist() == [3, 4, 5, 0]
    assert chosen.sizes.tolist() == [3, 1]


LABELS = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "targets", "sizes", "message"),
    [
        (torch.ones(3), LABELS, [3, 0], r"clients \[1\] hold no example"),
        (torch.ones(3), LABELS, [2], "they sum to 2, but there are 3 inputs and 3 targets"),
        (torch.tensor([1.0, float("nan"), 0]), LABELS, [3], "Invalid inputs: NaN or infinity"),
        (torch.ones(3), torch.tensor([0.0, float("inf"), 0]), [3], "Invalid targets: NaN"),
        (torch.ones(3), LABELS - 1, [3], "least label is -1. Labels start at 0"),
    ],
)
def test_refuses(inputs, targets, sizes, message):
    with pytest.raises(ValueError, match=message):
        fl.ClientData(inputs, targets, np.array(sizes, dtype=np.int64))


def test_indices_outside_the_data_are_refused():
    with pytest.raises(ValueError, match="reach from 0 to 3, but there are 3 images"):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(3, int), [np.array([0, 3])])


def test_split_refuses_single_examples_and_fractions_outside():
    clients = fl.ClientData(torch.ones(3), LABELS, np.array([2, 1]))
    with pytest.raises(ValueError, match="client 1 has one example"):
        clients.split(0.5, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="Invalid fraction=1.0"):
        clients.split(1.0, rng=np.random.default_rng(0))


def test_a_client_that_is_not_there():
    with pytest.raises(IndexError, match="Invalid client=2: clients are 0 to 1"):
        fl.ClientData(torch.ones(3), LABELS, np.array([2, 1]))[2]
    for ids, error in {(0, 2): IndexError, (-1,): IndexError, (): ValueError}.items():
        with pytest.raises(error, match="Invalid client=.*: clients are 0 to 1|Invalid ids: none"):
            fl.ClientData(torch.ones(3), LABELS, np.array([2, 1])).select(ids)


def test_types_are_refused_with_a_remedy(as_readers_run_it):
    with pytest.raises(TypeError, match="Invalid inputs of type ndarray.*from_parts"):
        fl.ClientData(np.ones(3), LABELS, np.array([3]))
    with pytest.raises(ValueError, match=r"targets of shape \(3, 1\): must be one per example"):
        fl.ClientData(torch.ones(3), LABELS[:, None], np.array([3]))
    with pytest.raises(TypeError, match="Invalid sizes"):
        fl.ClientData(torch.ones(3), LABELS, [])
    with pytest.raises(TypeError, match="Invalid sizes: not a list of integers"):
        fl.ClientData(torch.ones(3), LABELS, [3.0])
    with pytest.raises(TypeError, match="Invalid inputs of type torch.complex64: not real"):
        fl.ClientData(torch.ones(3) * 1j, LABELS, [3])
    with pytest.raises(ValueError, match=r"Invalid inputs of shape \(\): give one row"):
        fl.ClientData(torch.tensor(1.0), LABELS, [3])
    with pytest.raises(ValueError, match="targets on meta: the inputs are on cpu. .* one device"):
        fl.ClientData(torch.ones(3), LABELS.to("meta"), [3])
    with pytest.raises(TypeError, match="Invalid labels of type <U1: not numbers. Number the cl"):
        fl.ClientData.from_parts(np.ones(3), np.array(list("abc")), [np.arange(3)])
    with pytest.raises(ValueError, match="Invalid device='gpu': .* 'cpu' is always there"):
        fl.ClientData.from_parts(np.ones(3), np.zeros(3, int), [np.arange(3)], device="gpu")
    with pytest.raises(TypeError, match="Invalid fraction='half': not a number"):
        fl.ClientData(torch.ones(3), LABELS, [3]).split("half", rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"Invalid parts of type bool.*np.flatnonzero"):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(3, int), [np.ones(3, bool)])
    with pytest.raises(ValueError, match="Invalid parts: none"):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(3, int), [])
    with pytest.raises(ValueError, match="Invalid labels: 2 for 3 images"):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(2, int), [np.array([0])])
    with pytest.raises(TypeError, match="Invalid rng=0"):
        fl.ClientData(torch.ones(3), LABELS, np.array([3])).split(0.5, rng=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_integer_type_become_int64(dtype):
    clients = fl.ClientData(torch.ones(3), LABELS.to(dtype), np.array([3]))
    assert clients.targets.dtype == torch.int64
