"""ClientData holds what it was given, and refuses what no run could use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlib as fl

CONFIG = fl.FedAvgConfig(
    num_rounds=1, local_steps=1, cohort_size=None, batch_size=None, client_lr=0.1
)


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
    with pytest.raises(
        ValueError, match=r"parts\[0\]: positions reach from 0 to 3, but there are 3"
    ):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(3, int), [np.array([0, 3])])


def test_split_keeps_a_single_example_on_the_training_side_and_says_so():
    clients = fl.ClientData(torch.arange(4), torch.zeros(4), np.array([1, 2, 1]))
    with pytest.warns(UserWarning, match="2 of 3 clients have one example"):
        train, test = clients.split(0.1, rng=np.random.default_rng(0))
    assert (train.sizes.tolist(), test.sizes.tolist()) == ([1, 1, 1], [1])
    assert sorted([*train.inputs.tolist(), *test.inputs.tolist()]) == [0, 1, 2, 3]
    assert train.inputs[[0, 2]].tolist() == [0, 3]
    larger = clients.select(clients.sizes > 1).split(0.1, rng=np.random.default_rng(0))
    assert [half.num_clients for half in larger] == [1, 1]  # and no warning


def test_split_refuses_clients_that_all_hold_one_example_and_fractions_outside():
    clients = fl.ClientData(torch.ones(3), LABELS, np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="each has one example, which cannot be split"):
        clients.split(0.5, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="Invalid fraction=1.0"):
        clients.split(1.0, rng=np.random.default_rng(0))


def test_a_client_that_is_not_there():
    with pytest.raises(IndexError, match="Invalid client=2: clients are 0 to 1"):
        fl.ClientData(torch.ones(3), LABELS, np.array([2, 1]))[2]
    for ids, error in {(0, 2): IndexError, (-1,): IndexError, (): ValueError}.items():
        with pytest.raises(error, match="Invalid ids: (positions reach from .*|none)"):
            fl.ClientData(torch.ones(3), LABELS, np.array([2, 1])).select(ids)


def test_types_are_refused_with_a_remedy(as_readers_run_it):
    with pytest.raises(TypeError, match="Invalid inputs of type ndarray.*from_parts"):
        fl.ClientData(np.ones(3), LABELS, np.array([3]))
    with pytest.raises(ValueError, match=r"Invalid targets of shape \(\): give one row"):
        fl.ClientData(torch.ones(3), LABELS[0], np.array([3]))
    with pytest.raises(TypeError, match="Invalid sizes of type float64: not integers"):
        fl.ClientData(torch.ones(3), LABELS, [3.0])
    with pytest.raises(TypeError, match="Invalid inputs of type torch.complex64: not real"):
        fl.ClientData(torch.ones(3) * 1j, LABELS, [3])
    with pytest.raises(ValueError, match=r"Invalid inputs of shape \(\): give one row"):
        fl.ClientData(torch.tensor(1.0), LABELS, [3])
    with pytest.raises(TypeError, match="targets: it is on the device meta, which holds no values"):
        fl.ClientData(torch.ones(3), LABELS.to("meta"), [3])
    with pytest.raises(TypeError, match="Invalid labels: not numbers, but <U1. Number the cl"):
        fl.ClientData.from_parts(np.ones(3), np.array(list("abc")), [np.arange(3)])
    with pytest.raises(ValueError, match="Invalid device='gpu': .* 'cpu' is always there"):
        fl.ClientData.from_parts(np.ones(3), np.zeros(3, int), [np.arange(3)], device="gpu")
    with pytest.raises(TypeError, match="Invalid fraction='half': not a number"):
        fl.ClientData(torch.ones(3), LABELS, [3]).split("half", rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"Invalid parts\[0\] of type bool.*np.flatnonzero"):
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


def test_select_takes_a_mask():
    clients = fl.ClientData(torch.arange(6), torch.zeros(6), np.array([1, 2, 3]))
    mask = clients.sizes >= 2
    for chosen in (clients.select(mask), clients.select(mask.tolist()), clients.select([1, 2])):
        assert chosen.inputs.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="a mask of 2 for 3"):
        clients.select(mask[:2])
    with pytest.raises(ValueError, match="Invalid ids: none"):
        clients.select(mask & False)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([[0, 1], []], ValueError, r"Invalid parts\[1\]: it is empty"),
        ({0: [0, 1]}, TypeError, "Invalid parts of type dict: .* Use a list with one index array"),
        ([[0, 1], [0.5]], TypeError, r"Invalid parts\[1\] of type float64: not integers"),
        ([[0, 1], [[2]]], ValueError, r"Invalid parts\[1\] of shape \(1, 1\): not one row"),
        ([[0, 1], 2], ValueError, r"Invalid parts\[1\] of shape \(\): not one row"),
        ("01", TypeError, "Invalid parts: a text"),
    ],
)
def test_parts_that_are_none_are_told_which(parts, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        fl.ClientData.from_parts(np.ones((3, 1)), np.zeros(3, int), parts)


@pytest.mark.parametrize(
    ("targets", "remedy"),
    [
        ([[0, 1], [1, 0]], r"Use targets.argmax\(1\)"),
        ([[1, 1], [1, 0]], "Use one label per example: of several, argmax would drop all but one"),
        ([[0], [1]], r"Use targets.flatten\(\)"),
        ([[0.5, 2.0], [1.0, 0.0]], "Use one number per example"),
    ],
)
def test_targets_of_another_shape_are_told_what_they_are(targets, remedy, as_readers_run_it):
    clients = fl.ClientData(torch.ones(2, 3), torch.tensor(targets), np.array([2]))
    with pytest.raises(ValueError, match=remedy):
        fl.run_fedavg(fl.MLP((3,), 2), clients, CONFIG, seed=0, progress=False)


def test_data_written_to_after_construction_are_noticed():
    clients = fl.ClientData(torch.ones(3), torch.tensor([0, 1, 2]), np.array([3]))
    before = clients.digest
    clients.inputs.numpy()[0] = 2  # which torch's own count of writes does not see
    assert clients.digest != before
    assert clients.num_classes == 3
    clients.targets[1] = -100  # what cross-entropy leaves out
    with pytest.raises(ValueError, match="the least label is -100"):
        _ = clients.num_classes


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", "longdouble", "u2", "?"])
def test_arrays_of_any_real_type_and_byte_order_are_taken(dtype, as_readers_run_it):
    images = np.array([[0], [1], [1]]).astype(dtype)
    clients = fl.ClientData.from_parts(images, np.array([0, 1, 0], ">i2"), [np.array([2, 0])])
    assert clients.inputs.double().tolist() == [[1], [0]]
    assert clients.targets.tolist() == [0, 0]


def test_tensors_keep_their_type_in_from_parts(as_readers_run_it):
    images = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    clients = fl.ClientData.from_parts(images, torch.arange(3), [[0, 2]])
    assert clients.inputs.dtype == torch.bfloat16
    assert not clients.inputs.requires_grad
    with pytest.raises(TypeError, match="Invalid images: it is torch.sparse_coo.* to_dense|dense"):
        fl.ClientData.from_parts(torch.ones(3, 2).to_sparse(), torch.arange(3), [[0, 2]])
    with pytest.raises(TypeError, match="some entries are masked"):
        fl.ClientData.from_parts(np.ma.ones(3), torch.arange(3), [[0, 2]])


def test_sizes_whose_sum_overflows_are_refused():
    with pytest.raises(ValueError, match="Invalid sizes: they sum to 18446744073709551619"):
        fl.ClientData(torch.ones(3), LABELS, np.array([2**62] * 4 + [3]))


def test_a_negated_view_is_its_values(as_readers_run_it):
    view = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert view.is_neg()
    found, wanted = (
        fl.ClientData(x, torch.zeros(2), np.array([2])) for x in (view, torch.tensor([-2.0, 4]))
    )
    assert torch.equal(found.inputs, wanted.inputs)
    assert found.digest == wanted.digest
    assert fl.mean_interval(view) == fl.mean_interval([-2.0, 4.0])


@pytest.mark.parametrize("ids", [{0}, None, slice(2)])
def test_positions_are_asked_for_as_integers(ids, as_readers_run_it):
    clients = fl.ClientData(torch.eye(2), torch.zeros(2), np.array([1, 1]))
    with pytest.raises(TypeError, match="Invalid ids of type object: not integers"):
        clients.select(ids)


def test_an_empty_list_is_told_to_be_empty(as_readers_run_it):
    with pytest.raises(ValueError, match=r"Invalid sizes: its shape is \(0,\)"):
        fl.ClientData(torch.eye(2), torch.zeros(2), [])
