"""Partitions: what each promises, whatever the labels."""

import time

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlib as fl
from fedlib import partition

laws = settings(deadline=None, derandomize=True)  # no failure by a slow machine or by chance
seeds = st.integers(0, 2**32 - 1)
some_labels = st.lists(st.integers(-2, 6), min_size=1, max_size=80).map(np.array)


def rng(seed=0):
    return np.random.default_rng(seed)


def check_disjoint(parts, num_examples):
    everything = np.concatenate(parts)
    assert all(part.dtype == np.int64 and part.ndim == 1 and len(part) for part in parts)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0
    assert everything.max() < num_examples
    return everything


def check_same_from_same_rng(split, seed):
    for one, two in zip(split(rng(seed)), split(rng(seed)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def as_readers_run_it():
    """Without the shape checks that only our tests switch on, so that our own messages show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# --- iid --------------------------------------------------------------------------------------


@laws
@given(labels=some_labels, data=st.data(), seed=seeds)
def test_iid_uses_everything_once_in_equal_sizes(labels, data, seed):
    num_clients = data.draw(st.integers(1, len(labels)))

    def split(generator):
        return fl.partition_iid(labels, num_clients=num_clients, rng=generator)

    parts = split(rng(seed))
    assert len(parts) == num_clients
    assert len(check_disjoint(parts, len(labels))) == len(labels)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    check_same_from_same_rng(split, seed)


# --- Dirichlet --------------------------------------------------------------------------------


@laws
@given(
    labels=some_labels,
    data=st.data(),
    seed=seeds,
    concentration=st.floats(1e-300, 1e300) | st.floats(0.01, 10),
)
def test_dirichlet_uses_everything_once_and_leaves_nobody_empty(labels, data, seed, concentration):
    num_clients = data.draw(st.integers(1, len(labels)))

    def split(generator):
        return fl.partition_dirichlet(
            labels, num_clients=num_clients, concentration=concentration, rng=generator
        )

    parts = split(rng(seed))
    assert len(parts) == num_clients
    assert len(check_disjoint(parts, len(labels))) == len(labels)
    check_same_from_same_rng(split, seed)


def test_dirichlet_concentration_goes_from_one_client_per_class_to_equal_shares():
    labels = np.repeat(np.arange(10), 100)

    def largest_share(concentration):
        parts = fl.partition_dirichlet(
            labels, num_clients=5, concentration=concentration, rng=rng()
        )
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return (counts.max(axis=0) / 100).mean()

    shares = [largest_share(c) for c in (0.001, 0.1, 1, 10, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.95
    assert shares[-1] < 0.22


def test_dirichlet_shares_have_the_distributions_mean_and_variance():
    labels, num_clients, concentration = np.repeat(np.arange(400), 200), 4, 0.5
    parts = fl.partition_dirichlet(
        labels, num_clients=num_clients, concentration=concentration, rng=rng()
    )
    shares = np.array([np.bincount(labels[part], minlength=400) for part in parts]) / 200
    mean = 1 / num_clients
    variance = mean * (1 - mean) / (num_clients * concentration + 1)
    np.testing.assert_allclose(shares.mean(axis=1), mean, atol=4 * np.sqrt(variance / 400))
    np.testing.assert_allclose(shares.var(axis=1), variance, rtol=0.3)


# --- by class ---------------------------------------------------------------------------------


def check_by_class(labels, parts, num_clients, classes_per_client, examples_per_client):
    check_disjoint(parts, len(labels))
    classes = np.unique(labels)
    counts = np.array([(labels[part][:, None] == classes).sum(axis=0) for part in parts])
    assert len(parts) == num_clients
    assert np.all(counts.sum(axis=1) == examples_per_client)
    assert np.all((counts > 0).sum(axis=1) == classes_per_client)
    clients_of_a_class = (counts > 0).sum(axis=0)
    assert np.ptp(clients_of_a_class) <= 1
    for row in counts:
        assert np.ptp(row[row > 0]) <= 1


@laws
@given(
    num_classes=st.integers(1, 8),
    num_clients=st.integers(1, 12),
    data=st.data(),
    extra=st.integers(0, 9),
    seed=seeds,
)
def test_by_class_keeps_its_promises(num_classes, num_clients, data, extra, seed):
    classes_per_client = data.draw(st.integers(1, num_classes))
    examples_per_client = classes_per_client + extra
    # Enough of each class for every client, plus some luck; labels need not be 0, 1, ...
    sizes = data.draw(st.lists(st.integers(120, 140), min_size=num_classes, max_size=num_classes))
    labels = rng(seed).permutation(np.repeat(3 * np.arange(num_classes) - 2, sizes))

    def split(generator):
        return fl.partition_by_class(
            labels,
            num_clients=num_clients,
            classes_per_client=classes_per_client,
            examples_per_client=examples_per_client,
            rng=generator,
        )

    parts = split(rng(seed))
    check_by_class(labels, parts, num_clients, classes_per_client, examples_per_client)
    check_same_from_same_rng(split, seed)


@laws
@given(sizes=st.lists(st.integers(1, 30), min_size=3, max_size=6), data=st.data(), seed=seeds)
def test_by_class_names_the_largest_size_that_works(sizes, data, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    num_clients, hand = data.draw(st.integers(1, len(labels))), data.draw(st.integers(1, 3))

    def split(examples):
        return fl.partition_by_class(
            labels,
            num_clients=num_clients,
            classes_per_client=hand,
            examples_per_client=examples,
            rng=rng(seed),
        )

    with pytest.raises(ValueError, match=r"class \d runs out, with \d+ clients sharing") as caught:
        split(len(labels) + hand)
    message = str(caught.value)
    if message.endswith("Use fewer clients."):
        largest = hand - 1
    else:
        largest = int(message.rstrip(".").split("examples_per_client <= ")[1])
        check_by_class(labels, split(largest), num_clients, hand, largest)
    with pytest.raises(ValueError, match="runs out"):
        split(largest + 1)


def test_by_class_can_use_every_example():
    labels = np.repeat(np.arange(10), 50)
    parts = fl.partition_by_class(
        labels, num_clients=25, classes_per_client=2, examples_per_client=20, rng=rng()
    )
    check_by_class(labels, parts, 25, 2, 20)
    assert len(np.concatenate(parts)) == 500


def test_by_class_deals_every_pair_of_classes_equally_often():
    labels, times = np.repeat(np.arange(5), 12_000), np.zeros((5, 5))
    parts = fl.partition_by_class(
        labels, num_clients=6000, classes_per_client=2, examples_per_client=2, rng=rng()
    )
    for part in parts:
        times[tuple(np.sort(labels[part]))] += 1
    counts = times[np.triu_indices(5, k=1)]
    np.testing.assert_allclose(counts, 600, atol=5 * np.sqrt(600))


# --- private labels ---------------------------------------------------------------------------


@laws
@given(labels=some_labels, data=st.data(), seed=seeds)
def test_private_labels_renumber_each_clients_classes(labels, data, seed):
    num_clients = data.draw(st.integers(1, len(labels)))
    parts = fl.partition_iid(labels, num_clients=num_clients, rng=rng(seed))
    parts = parts[: data.draw(st.integers(1, num_clients))]
    private = fl.private_labels(labels, parts, rng=rng(seed))
    assert private.dtype == np.int64
    assert private.shape == labels.shape
    outside = np.setdiff1d(np.arange(len(labels)), np.concatenate(parts))
    assert np.all(private[outside] == -1)
    for part in parts:
        pairs = set(zip(labels[part].tolist(), private[part].tolist(), strict=True))
        old, new = zip(*pairs, strict=True)
        assert sorted(new) == list(range(len(set(old)))) == list(range(len(old)))  # one to one
    check_same_from_same_rng(
        lambda generator: fl.private_labels(labels, parts, rng=generator), seed
    )


def test_private_permutations_are_uniform_and_independent_between_clients():
    num_clients = 6000
    labels = np.tile([4, 5, 9], num_clients)
    parts = list(np.arange(3 * num_clients).reshape(num_clients, 3))
    private = fl.private_labels(labels, parts, rng=rng()).reshape(num_clients, 3)
    orders, counts = np.unique(private, axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts, num_clients / 6, atol=5 * np.sqrt(num_clients / 6))
    same_as_next = np.all(private[:-1] == private[1:], axis=1).mean()
    assert abs(same_as_next - 1 / 6) < 5 * np.sqrt(5 / 36 / num_clients)


@given(st.integers(2, 12), st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**32))
def test_balanced_orders_give_every_class_every_number_equally_often(n, repeats, size, seed):
    num_classes = max(n, size)
    labels = np.repeat(np.arange(num_classes), repeats * size * 2)
    parts = fl.partition_by_class(
        labels,
        num_clients=repeats * num_classes,
        classes_per_client=size,
        examples_per_client=2 * size,
        rng=rng(seed),
    )
    private = fl.private_labels(labels, parts, rng=rng(seed), balanced=True)
    for part in parts:  # still a renumbering of the client's own classes
        pairs = set(zip(labels[part].tolist(), private[part].tolist(), strict=True))
        assert sorted(number for _, number in pairs) == list(range(size))
        assert len({label for label, _ in pairs}) == size
    for label in range(num_classes):
        counts = np.bincount(private[labels == label], minlength=size)
        assert np.all(counts == 2 * repeats)


def test_balanced_orders_depend_on_the_generator():
    labels = np.repeat(np.arange(8), 8)
    parts = fl.partition_by_class(
        labels, num_clients=8, classes_per_client=4, examples_per_client=8, rng=rng()
    )
    drawn = {tuple(fl.private_labels(labels, parts, rng=rng(s), balanced=True)) for s in range(5)}
    assert len(drawn) == 5


def test_balanced_orders_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="class 5 is held by 1 clients, not by a multiple of 2"):
        fl.private_labels(np.array([5, 6]), [np.array([0, 1])], rng=rng(), balanced=True)
    parts = [np.array([0, 1]), np.array([2])]
    with pytest.raises(ValueError, match="clients hold 1 to 2 classes"):
        fl.private_labels(np.array([5, 6, 5]), parts, rng=rng(), balanced=True)


def test_private_labels_do_not_change_their_input():
    labels = np.array([3, 3, 1])
    fl.private_labels(labels, [np.array([0, 2])], rng=rng())
    np.testing.assert_array_equal(labels, [3, 3, 1])


# --- what is refused --------------------------------------------------------------------------

LABELS = np.repeat([0, 1, 2], 50)


def by_class(labels=LABELS, **changes):
    arguments = {"num_clients": 3, "classes_per_client": 2, "examples_per_client": 4, "rng": rng()}
    return fl.partition_by_class(labels, **arguments | changes)


def dirichlet(labels=LABELS, **changes):
    arguments = {"num_clients": 3, "concentration": 1.0, "rng": rng()}
    return fl.partition_dirichlet(labels, **arguments | changes)


def iid(labels=LABELS, **changes):
    return fl.partition_iid(labels, **{"num_clients": 3, "rng": rng()} | changes)


def private(labels=LABELS, parts=(), **changes):
    return fl.private_labels(labels, list(parts), **{"rng": rng()} | changes)


@pytest.mark.parametrize("function", [by_class, dirichlet, iid, private])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": [0, 1]}, TypeError, "Invalid labels: not a NumPy array of integers"),
        ({"labels": np.array([0.0, 1.0])}, TypeError, "Invalid labels: not a NumPy array of int"),
        ({"labels": np.zeros((2, 2), int)}, ValueError, r"labels.shape=\(2, 2\): .*one-dim"),
        ({"labels": np.zeros(0, int)}, ValueError, r"labels.shape=\(0,\): .*not empty"),
        ({"rng": 0}, TypeError, r"Invalid rng=0: .* Use rng=np.random.default_rng"),
    ],
)
def test_every_function_refuses(function, changes, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        function(**changes)


@pytest.mark.parametrize("function", [by_class, dirichlet, iid])
@pytest.mark.parametrize(
    ("num_clients", "error", "message"),
    [
        (200, ValueError, "^Invalid num_clients=200: only 150 examples. Use num_clients <= 150.$"),
        (0, ValueError, "Invalid num_clients=0: must be at least 1"),
        (2.0, TypeError, "Invalid num_clients=2.0: not an integer"),
        (True, TypeError, "Invalid num_clients=True: not an integer"),
    ],
)
def test_every_partition_refuses(function, num_clients, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        function(num_clients=num_clients)


@pytest.mark.parametrize(
    ("function", "changes", "error", "message"),
    [
        (by_class, {"classes_per_client": 4}, ValueError, "only 3 classes. Use .* <= 3"),
        (by_class, {"classes_per_client": 0}, ValueError, "Invalid classes_per_client=0"),
        (by_class, {"examples_per_client": 1}, ValueError, "Use examples_per_client >= 2"),
        (
            by_class,
            {"num_clients": 3, "examples_per_client": 51},
            ValueError,
            "Invalid examples_per_client=51: class 0 runs out, with 2 clients sharing its 50 "
            "examples. Use examples_per_client <= 50.",
        ),
        (
            by_class,
            {"num_clients": 150, "examples_per_client": 2},
            ValueError,
            "class 0 runs out, with 100 clients .* Use fewer clients.",
        ),
        (dirichlet, {"concentration": 0}, ValueError, "Invalid concentration=0: not positive"),
        (dirichlet, {"concentration": np.inf}, ValueError, "Invalid concentration=inf"),
        (dirichlet, {"concentration": np.nan}, ValueError, "Invalid concentration=nan"),
        (dirichlet, {"min_examples": 51}, ValueError, "Use min_examples <= 50"),
        (by_class, {"examples_per_client": 2**62}, ValueError, "Use examples_per_client <= 50"),
        (private, {"parts": [], "balanced": True}, ValueError, "no client holds a class"),
        (dirichlet, {"concentration": "1"}, TypeError, "Invalid concentration='1': not a number"),
        (
            private,
            {"parts": [np.array([0, 7]), np.array([7])]},
            ValueError,
            "Invalid parts: example 7 occurs 2 times. Use disjoint parts",
        ),
        (private, {"parts": [np.array([3, 3])]}, ValueError, "example 3 occurs 2 times"),
        (private, {"parts": [np.array([150])]}, ValueError, r"parts\[0\]: .* Use positions 0..149"),
        (private, {"parts": [np.array([-1])]}, ValueError, r"parts\[0\]: positions reach from -1"),
        (
            private,
            {"parts": [np.array([0.5])]},
            TypeError,
            r"parts\[0\] of type float64: not integers",
        ),
    ],
)
def test_refused(function, changes, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        function(**changes)


# --- small clients ----------------------------------------------------------------------------


def one_by_one(parts, least):
    """Fill up small clients from the largest, first in line first: as it is said."""
    parts = [part.tolist() for part in parts]
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop(0))
    return parts


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 3))
def test_small_clients_take_from_the_largest(sizes, least):
    if sum(sizes) < least * len(sizes):
        return
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    filled = partition._filled_up(parts, least)
    assert [part.tolist() for part in filled] == one_by_one(parts, least)


@given(st.integers(0, 2**32), st.sampled_from([1e-320, 0.01, 0.1, 1]), st.integers(1, 5))
def test_min_examples_is_what_every_client_holds(seed, concentration, least):
    parts = dirichlet(
        num_clients=30, concentration=concentration, rng=rng(seed), min_examples=least
    )
    assert min(map(len, parts)) >= least
    assert sorted(np.concatenate(parts)) == list(range(150))


def test_two_examples_each_can_be_split():
    parts = dirichlet(num_clients=50, concentration=0.1, min_examples=2)
    clients = fl.ClientData.from_parts(np.zeros((150, 1)), LABELS, parts)
    train, test = clients.split(0.8, rng=rng())
    assert train.num_clients == test.num_clients == 50


@pytest.mark.parametrize("concentration", [1e15, 1e307, 1.7e308])
def test_a_huge_concentration_gives_equal_shares(concentration):
    parts = dirichlet(num_clients=5, concentration=concentration)
    assert [len(part) for part in parts] == [30] * 5


def test_filling_up_ten_thousand_clients_takes_no_time():
    began = time.process_time()
    dirichlet(np.arange(20_000) % 10, num_clients=10_000, concentration=0.01)
    assert time.process_time() - began < 5  # one at a time over all: 15 s and more
