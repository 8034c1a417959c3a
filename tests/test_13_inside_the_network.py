"""Chapter 13: CKA and principal angles, digits as linear tasks, and the stored measurements."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fedlib as fl
from fedlib import linear

seeds = st.integers(0, 2**32 - 1)


def white(n, d, rng):
    """Centred columns with X'X = nI."""
    X = rng.standard_normal((n, d))
    return np.linalg.qr(X - X.mean(axis=0))[0] * n**0.5


def bodies(d, k, rng):
    return (np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in range(2))


@given(seeds, st.integers(1, 4), st.integers(0, 4), st.integers(2, 20))
def test_prop_cka_angles(seed, k, more, examples):
    rng, d = np.random.default_rng(seed), k + more
    X = white(d + examples, d, rng)
    A, B = rng.standard_normal((2, d, k))
    formula = np.sum((A.T @ B) ** 2) / np.linalg.norm(A.T @ A) / np.linalg.norm(B.T @ B)
    assert fl.linear_cka(X @ A, X @ B) == pytest.approx(formula, abs=1e-9)
    A, B = bodies(d, k, rng)
    cosines = np.linalg.svd(A.T @ B, compute_uv=False)
    missed = 1 - fl.linear_cka(X @ A, X @ B)
    assert missed == pytest.approx(1 - np.mean(cosines**2), abs=1e-9)
    distance = linear.subspace_distance(A, B)
    assert distance**2 / k - 1e-9 <= missed <= distance**2 + 1e-9


def test_prop_cka_angles_attains_both_bounds():
    X, B = white(30, 6, np.random.default_rng(0)), np.eye(6)[:, :3]
    one, all_ = B.copy(), np.eye(6)[:, 3:]
    one[:, 2] = np.eye(6)[:, 5]
    assert 1 - fl.linear_cka(X @ B, X @ one) == pytest.approx(1 / 3)
    assert 1 - fl.linear_cka(X @ B, X @ all_) == pytest.approx(1)
    assert linear.subspace_distance(one, B) == linear.subspace_distance(all_, B) == 1


def test_prop_cka_angles_needs_white_inputs():
    """A direction that the inputs hardly vary in is hardly seen by CKA."""
    X = white(50, 4, np.random.default_rng(0)) @ np.diag([1, 1, 0.01, 0.01])
    A, B = np.eye(4)[:, [0, 2]], np.eye(4)[:, [0, 3]]
    assert linear.subspace_distance(A, B) == 1
    assert 1 - fl.linear_cka(X @ A, X @ B) < 1e-6 < 1 / 2


@given(seeds)
@settings(max_examples=30)
def test_prop_cka_angles_needs_orthonormal_columns(seed):
    """Stretching a feature leaves the subspace and changes CKA."""
    rng = np.random.default_rng(seed)
    X, (A, B) = white(50, 6, rng), bodies(6, 2, rng)
    assume(abs(A[:, 0] @ B).sum() > 0.1)
    stretched = A @ np.diag([1, 100])
    assert linear.subspace_distance(stretched, B) == pytest.approx(linear.subspace_distance(A, B))
    same = fl.linear_cka(X @ A, X @ A @ np.diag([1, 100]))
    assert 1 - same > 0.2  # the same subspace: the bound would be 0


def test_prop_cka_angles_needs_centred_columns():
    """A mean that both share is taken away by CKA, and counts in the product of the bodies."""
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((40, 3)) + 5)[0] * 40**0.5
    A, B = bodies(3, 1, rng)
    assert abs(fl.linear_cka(X @ A, X @ B) - float((A.T @ B)[0, 0]) ** 2) > 0.01


# --- Digits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Whitened pixels, labels, and the regression vectors of questions about pairs of digits."""
    images = fl.load_digits()
    pixels = images.images.reshape(len(images.images), -1).astype(float)
    U = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)[0]
    X = U[:, :20] * len(U) ** 0.5
    one_hot = np.eye(10)[images.labels]
    asked = np.array([one_hot[:, a] - one_hot[:, b] for a in range(10) for b in range(a)])
    return X, asked


def test_questions_about_all_images_are_linear_tasks(digits):
    X, asked = digits
    theta = asked @ X / len(X)
    values = np.linalg.svd(theta, compute_uv=False)
    assert values[8] > 0.5
    assert values[9] < 1e-9
    rng = np.random.default_rng(0)
    for y, t in zip(asked[:5], theta, strict=False):
        w = rng.standard_normal((2, 20))
        loss = [np.mean((X @ v - y) ** 2) / 2 - np.sum((v - t) ** 2) / 2 for v in w]
        assert loss[0] == pytest.approx(loss[1])


def test_the_simulator_does_what_the_recursion_says(digits):
    X, asked = digits
    X, asked = X[:, :6], asked[::15]
    X = np.linalg.qr(X)[0] * len(X) ** 0.5
    theta = asked @ X / len(X)
    B_star = np.linalg.svd(theta.T)[0][:, : len(asked)]
    tasks = linear.LinearTasks(B_star, theta @ B_star)
    rows = np.arange(len(asked) * len(X)).reshape(len(asked), -1)
    clients = fl.ClientData.from_parts(np.tile(X, (len(asked), 1)), asked.ravel(), list(rows))
    net = fl.LinearNet(6, len(asked)).double()
    config = fl.FedAvgConfig(
        num_rounds=3, local_steps=4, cohort_size=len(asked), batch_size=len(X), client_lr=1.0
    )
    run = fl.run_fedavg(net, clients, config, seed=0, progress=False)
    B0 = fl.params_of(net)["body.weight"].numpy().T
    same = linear.run(tasks, B0, np.zeros(len(asked)), local_steps=4, lr=1.0, num_rounds=3)
    np.testing.assert_allclose(run.params["body.weight"].numpy().T, same.B[-1], atol=1e-10)


# --- The stored measurements ----------------------------------------------------------------------

METHODS = {"untrained", "fedavg", "one_step_same_steps", "one_step_same_rounds", "centralised"}


@pytest.fixture(scope="module")
def stored():
    return fl.load_result("inside")


def test_every_network_was_looked_into(stored):
    seen = [(look["federation"][0], look["seed"]) for look in stored["layers"]]
    assert sorted(seen) == [(r, s) for r in ("private", "shared") for s in range(5)]
    for look in stored["layers"]:
        for methods in look["layers"].values():
            assert set(methods) == METHODS
            for numbers in methods.values():
                assert 0.05 < numbers["probe"] < 1
                assert numbers["centred_within"] > numbers["centred_between"]
                assert numbers["effective_rank"] >= 1
        for matrix in map(np.array, look["cka"].values()):
            np.testing.assert_array_equal(matrix, matrix.T)
            np.testing.assert_array_equal(matrix.diagonal(), 1)
            assert 0 <= matrix.min() <= matrix.max() <= 1


def test_the_untrained_network_is_one_for_both_federations(stored):
    for seed in range(5):
        first, second = (look["layers"] for look in stored["layers"] if look["seed"] == seed)
        for layer in first:
            assert first[layer]["untrained"] == second[layer]["untrained"]
            assert first[layer]["centralised"] == second[layer]["centralised"]


LAYERS = ("first pooling", "second pooling", "features")


def by_seed(stored, regime, layer, method, what):
    """A measure of every seed, from the rows themselves."""
    mine = [look for look in stored["layers"] if look["federation"][0] == regime]
    mine.sort(key=lambda look: look["seed"])
    return np.array([look["layers"][layer][method][what] for look in mine])


def gap(stored, regime, layer, what):
    """FedAvg minus one step with as many gradient steps: mean and half-width."""
    pair = [by_seed(stored, regime, layer, m, what) for m in ("fedavg", "one_step_same_steps")]
    return fl.mean_interval(pair[0] - pair[1])


def test_probes_say_what_the_chapter_says(stored):
    for layer in LAYERS:
        shared = gap(stored, "shared", layer, "probe")
        assert shared.mean + shared.half_width < 0
    private = [gap(stored, "private", layer, "probe") for layer in LAYERS]
    assert private[0].mean > private[0].half_width
    assert all(0 < interval.mean < interval.half_width for interval in private[1:])


def test_raw_cosines_differ_by_far_more_than_what_tells_classes_apart(stored):
    within, between = (gap(stored, "private", LAYERS[1], w).mean for w in ("within", "between"))
    assert within < -0.3
    assert between < -0.3
    assert abs(within - between) < 0.05


def test_with_private_labels_one_step_stays_nearer_its_start(stored):
    """The matrices are in the order untrained, FedAvg, one step (twice), centralised."""
    for look in stored["layers"]:
        for layer in LAYERS:
            _, (to_start, *_, to_end), (start, *_, end), *_ = look["cka"][layer]
            if look["federation"][0] == "private":
                assert end < min(start, to_end)
                assert to_start < start
            else:
                assert end > to_end


def test_effective_rank_judges_neither(stored):
    """After the first pooling it is lower for FedAvg whether its probe is worse or better."""
    for regime in ("shared", "private"):
        interval = gap(stored, regime, LAYERS[0], "effective_rank")
        assert interval.mean + interval.half_width < 0


def way(stored, regime, classes, tau):
    """Mean accuracy after each number of local steps, and its share of the way to the last."""
    mine = [
        row["accuracy"]
        for row in stored["own_heads"]
        if (row["setting"]["federation"][:2], row["setting"]["local_steps"])
        == ([regime, classes], tau)
    ]
    assert len(mine) == 5
    mean = np.mean(mine, axis=0)
    return mean, (mean - mean[0]) / (mean[-1] - mean[0])


def test_clients_take_more_steps_to_a_head_of_their_own_than_in_the_linear_model(stored):
    steps = stored["design"]["local_steps"]
    for tau, share in ((2, 0.25), (10, 0.67), (50, 0.85)):
        _, part = way(stored, "private", 5, tau)
        own = np.interp(np.arange(tau), steps, part).mean()
        assert own == pytest.approx(share, abs=0.006)
        assert own < (tau - 1) / tau


def test_many_private_classes_leave_no_head_to_be_found(stored):
    ends = [way(stored, "private", classes, 50)[0][-1] for classes in (5, 20, 80)]
    np.testing.assert_allclose(ends, [0.59, 0.23, 0.05], atol=0.006)
    assert ends[2] > 1 / 80
