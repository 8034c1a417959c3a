"""Chapter 11: how unlike clients are, mean labels and mean heads, and the CIFAR federations.

Expectations are enumerated over everything that can happen; heads are fitted here in NumPy. The
CIFAR federations are built on images that only say which row of which file they are.
"""

from itertools import combinations, permutations, product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlib as fl
from studies import federations as cifar

ROOT = Path(__file__).parent.parent
many = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# --- How unlike clients are -----------------------------------------------------------------------


def total_variation(labels, part, num_classes):
    own, overall = (np.bincount(x, minlength=num_classes) for x in (labels[part], labels))
    return abs(own / own.sum() - overall / overall.sum()).sum() / 2


@many
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_total_variation_of_a_deal_is_the_share_of_classes_that_are_missing(seed, C, more):
    K = C + more
    labels = np.repeat(np.arange(K), 10 * K)
    parts = fl.partition_by_class(
        labels,
        num_clients=4,
        classes_per_client=C,
        examples_per_client=2 * C,
        rng=np.random.default_rng(seed),
    )
    for part in parts:
        assert total_variation(labels, part, K) == pytest.approx(1 - C / K, abs=1e-12)


# --- The mean label -------------------------------------------------------------------------------


def squared_length(numbers, C):
    """Of the mean one-hot label minus uniform, entry by entry."""
    return sum((np.mean([y == c for y in numbers]) - 1 / C) ** 2 for c in range(C))


def expected_square(C, h, q, agreed=0):
    """Mean over all that h holders can say, with its probability."""
    chance = np.full(C, q / C)
    chance[agreed] += 1 - q
    return sum(
        np.prod([chance[y] for y in said]) * squared_length(said, C)
        for said in product(range(C), repeat=h)
    )


@many
@given(st.integers(2, 4), st.integers(1, 4), st.floats(0, 1), st.data())
def test_prop_mean_label(C, h, q, data):
    formula = (1 - 1 / C) * ((1 - q) ** 2 + (1 - (1 - q) ** 2) / h)
    agreed = data.draw(st.integers(0, C - 1))
    assert expected_square(C, h, q, agreed) == pytest.approx(formula, abs=1e-12)
    assert expected_square(C, h, 1) == pytest.approx((1 - 1 / C) / h)


@many
@given(st.integers(2, 5), st.data())
def test_prop_mean_label_by_counts(C, data):
    said = data.draw(st.lists(st.integers(0, C - 1), min_size=1, max_size=12))
    counts = np.bincount(said, minlength=C)
    square = squared_length(said, C)
    assert square == pytest.approx(sum((counts / len(said)) ** 2) - 1 / C, abs=1e-12)
    assert (square < 1e-12) == (np.ptp(counts) == 0)
    agree = len(set(said)) == 1
    assert (square == pytest.approx(1 - 1 / C, abs=1e-12)) == agree


def called(labels, private, parts, c):
    """What each holder calls a class."""
    own = [part[labels[part] == c] for part in parts]
    return [private[rows[0]] for rows in own if len(rows)]


@pytest.mark.parametrize("repeats", [1, 2])
def test_prop_mean_label_of_the_librarys_orders(repeats):
    """Balanced orders give zero for every class; random ones 1/h on average."""
    K, C, M = 26, 4, 26 * repeats
    labels = np.repeat(np.arange(K), 4 * M)
    squares = {True: [], False: []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        parts = fl.partition_by_class(
            labels, num_clients=M, classes_per_client=C, examples_per_client=C, rng=rng
        )
        for balanced in squares:
            private = fl.private_labels(labels, parts, rng=rng, balanced=balanced)
            squares[balanced] += [
                squared_length(called(labels, private, parts, c), C) for c in range(K)
            ]
    assert max(squares[True]) < 1e-12
    expected = (1 - 1 / C) / (C * repeats)
    assert np.mean(squares[False]) == pytest.approx(expected, rel=0.1)


def test_prop_mean_label_needs_independent_holders():
    C, h = 3, 5
    copied = np.mean([squared_length([y] * h, C) for y in range(C)])
    assert copied == pytest.approx(1 - 1 / C)
    assert copied > 4 * (1 - 1 / C) / h


def test_prop_mean_label_needs_uniform_numbers():
    chance, C, h = [0.6, 0.3, 0.1], 3, 4
    expected = sum(
        np.prod([chance[y] for y in said]) * squared_length(said, C)
        for said in product(range(C), repeat=h)
    )
    assert expected > 1.3 * (1 - 1 / C) / h


def test_balanced_orders_need_a_multiple_of_the_classes():
    """The solution of the exercise: 100 clients of 80 classes cannot, 160 can."""
    for M, possible in ((100, False), (160, True)):
        labels = np.repeat(np.arange(80), 5 * M)
        rng = np.random.default_rng(0)
        parts = fl.partition_by_class(
            labels, num_clients=M, classes_per_client=5, examples_per_client=5, rng=rng
        )
        holders = {len(called(labels, labels, parts, c)) for c in range(80)}
        assert holders == ({10} if possible else {6, 7})
        if possible:
            private = fl.private_labels(labels, parts, rng=rng, balanced=True)
            assert squared_length(called(labels, private, parts, 7), 5) < 1e-12
        else:
            with pytest.raises(ValueError, match="multiple of 5"):
                fl.private_labels(labels, parts, rng=rng, balanced=True)


# --- A fitted head --------------------------------------------------------------------------------


def fit(features, labels, C, rng, steps=6, start=None):
    """Fit W (k, C) and a bias by SGD with cross-entropy, in NumPy."""
    W, b = np.zeros((features.shape[1], C)), np.zeros(C)
    if start is not None:
        W = start.copy()
    for _ in range(steps):
        rows = rng.choice(len(labels), 4, replace=False)
        logits = features[rows] @ W + b
        s = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = s / s.sum(axis=1, keepdims=True) - np.eye(C)[labels[rows]]
        W, b = W - 0.7 * features[rows].T @ error / 4, b - 0.7 * error.mean(axis=0)
    return W


def client(seed, C=3, k=5, n=9):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, k)), rng.integers(C, size=n)


@many
@given(seeds, st.permutations(range(3)))
def test_prop_fitted_head(seed, order):
    features, labels = client(seed)
    W = fit(features, labels, 3, np.random.default_rng(seed))
    renumbered = fit(features, np.array(order)[labels], 3, np.random.default_rng(seed))
    assert abs(W.sum(axis=1)).max() < 1e-12
    assert abs(renumbered[:, order] - W).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_prop_fitted_head_mean_over_all_orders(seed):
    """All 36 pairs of orders of two clients."""
    heads = [fit(*client(seed + i), 3, np.random.default_rng(i)) for i in range(2)]
    orders = [list(o) for o in permutations(range(3))]
    means = [(heads[0][:, a] + heads[1][:, b]) / 2 for a, b in product(orders, orders)]
    squares = [np.sum(W**2) for W in heads]
    assert abs(np.mean(means, axis=0)).max() < 1e-12
    assert np.mean([np.sum(m**2) for m in means]) == pytest.approx(sum(squares) / 4)
    moments = [sum(W[:, o] @ W[:, o].T for W in heads) for o in orders]
    assert np.ptp(moments, axis=0).max() < 1e-9


@many
@given(seeds)
def test_prop_fitted_head_by_the_library(seed):
    """``fine_tune`` from a head of zeros does what the proposition speaks of."""
    features, labels = client(seed)
    order = np.random.default_rng(seed).permutation(3)
    model = fl.BodyHead(torch.nn.Identity(), torch.nn.Linear(5, 3)).double()
    start = {name: torch.zeros_like(p) for name, p in fl.params_of(model).items()}
    heads = []
    for y in (labels, order[labels]):
        data = fl.ClientData(torch.as_tensor(features), torch.as_tensor(y), np.array([9]))
        how = dict(steps=6, lr=0.7, batch_size=4, part="head", seed=1)
        heads.append(fl.fine_tune(model, start, data, **how)[0]["head.weight"].numpy())
    assert abs(heads[0].sum(axis=0)).max() < 1e-12
    assert abs(heads[1][order] - heads[0]).max() < 1e-12


def test_prop_fitted_head_needs_a_start_at_zero():
    features, labels = client(0)
    start, order = np.random.default_rng(1).standard_normal((5, 3)), [1, 2, 0]
    W, renumbered = (
        fit(features, y, 3, np.random.default_rng(0), start=start)
        for y in (labels, np.array(order)[labels])
    )
    assert abs(W.sum(axis=1)).max() > 0.1
    assert abs(renumbered[:, order] - W).max() > 0.1


def test_prop_fitted_head_needs_independent_orders():
    W = fit(*client(0), 3, np.random.default_rng(0))
    same = [np.sum(W[:, list(o)] ** 2) for o in permutations(range(3))]  # two clients, one order
    assert np.mean(same) == pytest.approx(2 * (2 * np.sum(W**2) / 4))


def test_prop_fitted_head_needs_orders_independent_of_the_heads():
    """Every client numbers its columns by their first entry: any order is as likely."""
    heads = [fit(*client(seed), 3, np.random.default_rng(seed)) for seed in range(50)]
    ranked = [W[:, np.argsort(W[0])] for W in heads]
    squares = [np.sum(W**2) for W in heads]
    assert np.sum(np.mean(ranked, axis=0) ** 2) > 5 * np.sum(squares) / 50**2


def test_the_idealised_shared_head():
    """The solution of the exercise: the square root of h / M."""
    K, C, rng = 6, 2, np.random.default_rng(0)
    u = rng.standard_normal((4, K))
    u /= np.linalg.norm(u, axis=0)
    hands = list(combinations(range(K), C))  # every class on as many clients
    heads = np.zeros((len(hands), 4, K))
    for W, hand in zip(heads, hands, strict=True):
        W[:, hand] = u[:, hand]
    h = sum(0 in hand for hand in hands)
    ratio = np.linalg.norm(heads.mean(axis=0)) / np.linalg.norm(heads[0])
    assert ratio == pytest.approx(np.sqrt(h / len(hands)))


def test_the_idealised_private_head():
    """One over M: any unit columns that sum to zero, over all orders of two clients."""
    angles = 2 * np.pi * np.arange(3) / 3
    W = np.stack([np.cos(angles), np.sin(angles)])
    V = np.stack([np.sin(angles), np.cos(angles)])
    orders = [list(o) for o in permutations(range(3))]
    squares = [np.sum(((W[:, a] + V[:, b]) / 2) ** 2) for a, b in product(orders, orders)]
    assert np.mean(squares) / 3 == pytest.approx(1 / 2)


# --- The CIFAR federations ------------------------------------------------------------------------

FILES = {("cifar100", "train"): 0, ("cifar100", "test"): 1, ("cifar10", "test"): 2}
LABELS = {
    key: np.random.default_rng(i).permutation(np.repeat(np.arange(K), n))
    for key, i, K, n in (
        (("cifar100", "train"), 0, 100, 500),
        (("cifar100", "test"), 1, 100, 100),
        (("cifar10", "test"), 2, 10, 1000),
    )
}


@pytest.fixture
def numbered(monkeypatch):
    """Images that hold the number of their file, of their row and of their class."""

    def images(name, split):
        labels = LABELS[name, split]
        file = np.full(len(labels), FILES[name, split])
        return np.stack([file, np.arange(len(labels)), labels], axis=1).astype(float), labels

    monkeypatch.setattr(cifar, "load_images", images)


def rows(clients):
    """Which (file, row) a federation's examples are."""
    return [tuple(row) for row in clients.inputs[:, :2].int().tolist()]


def classes(clients):
    return set(clients.inputs[:, 2].int().tolist())


FEDERATIONS = [
    cifar.Federation(regime, C) for C in (5, 20, 80) for regime in ("shared", "private")
] + [cifar.Federation("groups", 5, permuted=q) for q in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize("federation", FEDERATIONS, ids=str)
def test_training_clients_are_as_the_chapter_says(numbered, federation):
    clients = cifar.training_clients(federation, 0)
    assert clients.sizes.tolist() == [240] * 100
    assert len(set(rows(clients))) == 24000
    assert len(classes(clients)) == 80
    for i in range(100):
        x, y = clients[i]
        held, per_class = np.unique(x[:, 2].numpy(), return_counts=True)
        assert (len(held), *set(per_class)) == (federation.classes, 240 // federation.classes)
        pairs = set(zip(x[:, 2].tolist(), y.tolist(), strict=True))
        assert len(pairs) == len({label for _, label in pairs}) == federation.classes
    if federation.regime == "shared":
        number = {}
        for c, y in zip(clients.inputs[:, 2].tolist(), clients.targets.tolist(), strict=True):
            assert number.setdefault(c, y) == y
        assert sorted(number.values()) == list(range(80))
    else:
        assert clients.num_classes == federation.classes


def test_clients_of_the_next_common_multiple_would_run_out_of_images():
    labels = np.repeat(np.arange(cifar.NUM_KNOWN), cifar.TRAIN_ROWS)
    deal = dict(num_clients=100, classes_per_client=5, examples_per_client=320)
    with pytest.raises(ValueError, match="runs out"):
        fl.partition_by_class(labels, **deal, rng=np.random.default_rng(0))


def test_training_tuning_and_reporting_share_no_image(numbered):
    trained = cifar.training_clients(cifar.Federation("shared", 20), 0)
    tasks = {kind: cifar.new_clients(kind, 0) for kind in (*cifar.KINDS, "validation")}
    used, known = set(rows(trained)), classes(trained)
    for kind, task in tasks.items():
        assert used.isdisjoint(rows(task.train) + rows(task.test))
        assert set(rows(task.train)).isdisjoint(rows(task.test))
        assert task.train.sizes.tolist() == [1000] * 10
        assert task.test.sizes.tolist() == [500] * 10
        if kind != "cifar10":
            inside = classes(task.train) | classes(task.test)
            assert inside.isdisjoint(known) if kind == "unseen" else inside <= known
    for kind in cifar.KINDS:  # what is tuned on is not what is reported on
        assert set(rows(tasks["validation"].test)).isdisjoint(rows(tasks[kind].test))
    assert {file for file, _ in rows(tasks["cifar10"].train)} == {2}


@pytest.mark.parametrize("kind", [*cifar.KINDS, "validation"])
def test_a_budget_is_the_first_images_of_each_class(numbered, kind):
    task = cifar.new_clients(kind, 0)
    for budget in cifar.BUDGETS:
        smaller = task.with_budget(budget)
        for i in range(10):
            x, y = smaller.train[i]
            assert np.bincount(y).tolist() == [budget] * cifar.WAYS
            assert (x == task.train[i][0][: budget * cifar.WAYS]).all()
            by_label = {c: set(x[y == c, 2].tolist()) for c in range(cifar.WAYS)}
            assert all(len(own) == 1 for own in by_label.values())


def test_the_chapter_has_the_studies_constants():
    notebook = nbformat.read(ROOT / "book" / "11_federated_images.ipynb", as_version=4)
    (source,) = (c.source for c in notebook.cells if c.source.startswith("known, classes, own"))
    told = {}
    exec("\n".join(source.splitlines()[:2]), told)
    counts = cifar.counts_of("cifar100")
    assert [told[n] for n in ("classes", "known", "own", "tune")] == list(counts)
    assert (told["ways"], told["tested"]) == (cifar.WAYS, cifar.TEST_PER_CLASS)
    assert told["budgets"] == cifar.BUDGETS
