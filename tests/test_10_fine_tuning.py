"""Chapter 10: what a new client gains, beyond Theorem E (which test_linear_statements.py tests).

The corollaries are checked on the library's exact risks, which are themselves compared with
simulation there; each has a control outside its assumptions, where its conclusion fails.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import inv, norm

from fedlib import linear

many = settings(max_examples=200, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def client(d, k, miss, length=1.0):
    """A body, and a client of that length of which the body misses the share ``miss``."""
    theta = length * np.r_[np.sqrt(1 - miss), np.zeros(d - 2), np.sqrt(miss)]
    return np.eye(d)[:, :k], theta


def both(d, k, theta, n, sigma):
    options = dict(num_samples=n, noise_std=sigma)
    head = linear.fine_tuning_risk(np.eye(d)[:, :k], theta, **options)
    return head, linear.scratch_risk(d, theta, **options)


# --- Any covariance -----------------------------------------------------------------------------


def in_the_clients_norm(n, seed=0, d=6, k=2, sigma=0.5, repeats=10_000):
    """Measured risks of the head and from scratch, with errors; and d_w² and |θ|² in this norm."""
    rng = np.random.default_rng(seed)
    root = np.diag(np.geomspace(0.2, 3, d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    B, theta = rng.standard_normal((d, k)), rng.standard_normal(d)
    X = rng.standard_normal((repeats, n, d)) @ root
    y = X @ theta + sigma * rng.standard_normal((repeats, n))
    found = []
    for body in (B, np.eye(d)):
        fit = np.einsum("rdn,rn->rd", np.linalg.pinv(X @ body), y) @ body.T
        loss = norm((fit - theta) @ root.T, axis=1) ** 2
        found.append((loss.mean(), loss.std() / np.sqrt(repeats)))
    best = np.linalg.lstsq(root @ B, root @ theta, rcond=None)[0]
    return *found, norm(root @ (B @ best - theta)) ** 2, norm(root @ theta) ** 2


@pytest.mark.parametrize("n", [14, 40])
def test_least_squares_in_the_clients_norm_under_any_covariance(n):
    head, scratch, missed, _ = in_the_clients_norm(n)
    assert abs(head[0] - missed - (0.25 + missed) * 2 / (n - 3)) < 4.5 * head[1]
    assert abs(scratch[0] - 0.25 * 6 / (n - 7)) < 4.5 * scratch[1]


def test_least_squares_in_the_clients_norm_needs_enough_examples():
    _, shortest, _, size = in_the_clients_norm(3)
    assert abs(shortest[0] - (1 - 3 / 6) * size - 0.25 * 3 / (6 - 3 - 1)) > 10 * shortest[1]


# --- Moments of a Gaussian design ---------------------------------------------------------------


def moments(draw, n, k, repeats=40_000, seed=0):
    """Means of Ĝ M Ĝ and tr (GᵀG)⁻¹, with standard errors and formulas."""
    G = draw(np.random.default_rng(seed), (repeats, n, k))
    gram = G.transpose(0, 2, 1) @ G
    M = np.diag(np.linspace(2, -1, k))
    square = gram @ M @ gram / n**2
    for found, formula in (
        (square, (1 + 1 / n) * M + np.trace(M) / n * np.eye(k)),
        (np.trace(inv(gram), axis1=1, axis2=2), k / (n - k - 1)),
    ):
        yield found.mean(axis=0), found.std(axis=0) / np.sqrt(repeats), formula


def normal(rng, shape):
    return rng.standard_normal(shape)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 2), (12, 3), (30, 5)])
def test_lem_gaussian_design(n, k):
    for mean, error, formula in moments(normal, n, k):
        assert (abs(mean - formula) < 4.5 * error).all()


def test_lem_gaussian_design_has_the_chi_squared_diagonal():
    # The first entry of the inverse is one over the squared distance from the other columns.
    rng = np.random.default_rng(0)
    for _ in range(200):
        G = rng.standard_normal((6, 3))
        Q = np.linalg.qr(G[:, 1:])[0]
        rest = G[:, 0] - Q @ (Q.T @ G[:, 0])
        assert inv(G.T @ G)[0, 0] == pytest.approx(1 / (rest @ rest))


def test_lem_gaussian_design_needs_gaussian_entries():
    def on_a_sphere(rng, shape):  # rows of covariance I, but all of the same length
        rows = rng.standard_normal(shape)
        return np.sqrt(shape[-1]) * rows / norm(rows, axis=-1, keepdims=True)

    for mean, error, formula in moments(on_a_sphere, 12, 3):
        assert (abs(mean - formula) > 10 * error).any()


def test_lem_gaussian_design_needs_more_rows_for_its_inverse():
    # With n = k + 1 the mean of the trace grows with the number of draws: it is infinite.
    G = np.random.default_rng(0).standard_normal((400_000, 3, 2))
    traces = np.trace(inv(G.transpose(0, 2, 1) @ G), axis1=1, axis2=2)
    assert traces.max() > 0.05 * traces.sum()
    assert traces[:1000].mean() < traces.mean() / 1.1


# --- The threshold ------------------------------------------------------------------------------


@many
@given(seeds, st.integers(1, 5), st.integers(4, 20), st.floats(0.1, 2), st.floats(0.2, 3))
def test_cor_fine_tuning_threshold(seed, k, more, sigma, length):
    rng = np.random.default_rng(seed)
    d = k + more
    n = int(rng.integers(k + 2, 3 * d))
    if n > d + 1:
        threshold = sigma**2 * (d - k) / (n - d - 1)
    elif n < d - 1:
        noise = sigma**2 * (n / (d - n - 1) - k / (n - k - 1))
        threshold = ((1 - n / d) * length**2 + noise) * (n - k - 1) / (n - 1)
        if n * (n - 1) >= k * (d - 1):
            assert noise >= -1e-12
    else:
        threshold = np.inf
    for share in (0.9, 1.1):
        miss = min(max(threshold * share, 0) / length**2, 1.0)
        _, theta = client(d, k, miss, length)
        head, scratch = both(d, k, theta, n, sigma)
        assert (head < scratch) == (miss * length**2 < threshold)


def test_cor_fine_tuning_threshold_needs_noise():
    # Without noise, learning from scratch is exact from n = d on, and a poor body never wins.
    _, theta = client(10, 2, 0.3)
    head, scratch = both(10, 2, theta, 11, 0.0)
    assert scratch == 0 < head


def test_cor_fine_tuning_threshold_needs_its_own_formula_for_few_examples():
    # The formula for n > d + 1 would be negative here, although the head wins.
    _, theta = client(20, 2, 0.1)
    head, scratch = both(20, 2, theta, 12, 0.3)
    assert head < scratch
    assert 0.3**2 * 18 / (12 - 20 - 1) < 0


# --- Worth in examples --------------------------------------------------------------------------


def worth(d, k, theta, n, sigma):
    """The real number of examples at which σ²d/(n' - d - 1) is the head's risk, by bisection."""
    risk, _ = both(d, k, theta, n, sigma)
    low, high = d + 1.0, d + 2.0
    while sigma**2 * d / (high - d - 1) > risk:
        high = d + 1 + 2 * (high - d - 1)
    for _ in range(200):
        middle = (low + high) / 2
        if sigma**2 * d > risk * (middle - d - 1):
            low = middle
        else:
            high = middle
    return high


@many
@given(st.integers(1, 5), st.integers(2, 20), st.floats(0.1, 2), st.floats(0.001, 1))
def test_cor_sample_worth(k, more, sigma, miss):
    d = k + more
    counts = [k + 2, k + 5, d + 4, 3 * d, 100 * d]
    perfect = [worth(d, k, client(d, k, 0)[1], n, sigma) for n in counts]
    stretched = d + 1 + d / k * (np.array(counts) - k - 1)
    assert perfect == pytest.approx(stretched)
    found = [worth(d, k, client(d, k, miss)[1], n, sigma) for n in counts]
    most = d + 1 + sigma**2 * d / miss
    assert (np.diff(found) > 0).all()
    assert max(found) < most
    assert worth(d, k, client(d, k, miss)[1], 10**9, sigma) == pytest.approx(most, rel=1e-3)


def test_cor_sample_worth_needs_an_imperfect_body_for_its_bound():
    _, exact = client(10, 2, 0.0)
    _, poor = client(10, 2, 0.2)
    assert worth(10, 2, exact, 10**5, 0.5) > 10**5
    assert worth(10, 2, poor, 10**5, 0.5) < 10 + 1 + 0.25 * 10 / 0.2


# --- One step against least squares -------------------------------------------------------------


def step_and_fit(seed, n, sigma, scale, alpha, share=1.0):
    """Risks of one head step and of least squares, and the numbers that decide."""
    rng = np.random.default_rng(seed)
    k, d = int(rng.integers(1, 5)), 8
    Q = np.linalg.qr(rng.standard_normal((d, k)))[0]
    B, theta = share * Q / np.sqrt(alpha), rng.standard_normal(d)
    w = np.linalg.lstsq(B, theta, rcond=None)[0] + scale * rng.standard_normal(k)
    gap = norm(B @ w - Q @ (Q.T @ theta)) ** 2
    noise = sigma**2 + norm(theta - Q @ (Q.T @ theta)) ** 2
    n += k + 1
    options = dict(num_samples=n, noise_std=sigma)
    step = linear.head_step_risk(B, w, theta, lr=alpha, **options)
    return step, linear.fine_tuning_risk(B, theta, **options), gap, noise, n, k


@many
@given(seeds, st.integers(1, 60), st.floats(0.1, 2), st.floats(0.01, 2), st.floats(0.01, 2))
def test_cor_one_head_step(seed, n, sigma, scale, alpha):
    step, fit, gap, noise, n, k = step_and_fit(seed, n, sigma, scale, alpha)
    missed = noise - sigma**2
    assert step == pytest.approx(missed + (k + 1) / n * gap + k / n * noise)
    assert step - fit <= (k + 1) / n * gap * (1 + 1e-9)
    decide = noise * k / (n - k - 1)
    assume(abs(gap / decide - 1) > 1e-6)
    assert (step < fit) == (gap < decide)


def test_cor_one_head_step_needs_a_matched_body():
    # A body of half the length: one step of the same size leaves most of the error.
    step, fit, gap, _, n, k = step_and_fit(0, 10**6, 0.5, 0.1, 0.2, share=0.5)
    assert step - fit > 100 * (k + 1) / n * gap


# --- What training leaves -----------------------------------------------------------------------


@many
@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_cor_fine_tuning_floor_holds_for_every_head(seed, k, more):
    rng = np.random.default_rng(seed)
    d = k + more
    B, B_star = rng.standard_normal((d, k)), np.linalg.qr(rng.standard_normal((d, k)))[0]
    Q = np.linalg.qr(B)[0]
    out = B_star - Q @ (Q.T @ B_star)
    _, size, rows = np.linalg.svd(out)
    assert size[0] == pytest.approx(linear.subspace_distance(B, B_star))
    theta = B_star @ rows[0]
    assert norm(theta - Q @ (Q.T @ theta)) == pytest.approx(size[0])
    heads = rng.standard_normal((20, k))
    assert norm(heads @ B.T - theta, axis=1).min() >= size[0] * (1 - 1e-9)


@many
@given(seeds, st.integers(2, 3), st.floats(0.1, 0.95))
def test_cor_fine_tuning_floor_of_one_step(seed, k, distance):
    rng = np.random.default_rng(seed)
    heads = rng.standard_normal((5, k)) / 3
    B0 = np.linalg.qr(rng.standard_normal((k + 3, k)))[0]
    tasks = linear.worst_case_tasks(B0, heads, distance=distance)
    B = linear.run(tasks, B0, np.zeros(k), local_steps=1, lr=0.1, num_rounds=100)[-1][0]
    Q = np.linalg.qr(B)[0]
    worst = np.linalg.svd(tasks.B_star - Q @ (Q.T @ tasks.B_star))[2][0]
    options = dict(num_samples=10**9, noise_std=0.0)
    assert linear.fine_tuning_risk(B, tasks.B_star @ worst, **options) >= distance**2 - 1e-9


def test_cor_fine_tuning_floor_needs_one_local_step():
    rng = np.random.default_rng(0)
    B0 = np.linalg.qr(rng.standard_normal((6, 2)))[0] / np.sqrt(0.1)
    tasks = linear.worst_case_tasks(B0, np.vstack([np.eye(2), -np.eye(2)]), distance=0.8)
    options = dict(num_samples=10**9, noise_std=0.5)
    risk = {}
    for tau in (1, 2):
        B = linear.run(tasks, B0, np.zeros(2), local_steps=tau, lr=0.1, num_rounds=3000)[-1][0]
        Q = np.linalg.qr(B)[0]
        worst = np.linalg.svd(tasks.B_star - Q @ (Q.T @ tasks.B_star))[2][0]
        risk[tau] = linear.fine_tuning_risk(B, tasks.B_star @ worst, **options)
    assert risk[2] < 1e-3 < 0.8**2 - 1e-9 <= risk[1]


@pytest.mark.parametrize("distance", [0.2, 0.6, 0.7])
def test_cor_fine_tuning_floor_falls_under_the_threshold_in_time(distance):
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(
        np.linalg.qr(rng.standard_normal((5, 1)))[0], np.array([[1.0], [-1.0], [0.5]])
    )
    lr = linear.largest_lr(tasks, distance=distance, local_steps=40)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    promise = linear.guarantee(tasks, B0, local_steps=40, lr=lr)
    assert promise.holds
    cases = {}
    for n in (7, 12, 50, 400):
        for sigma in (0.3, 1.0):
            log = np.log(
                1.013 * promise.D0 / np.sqrt(promise.E0) / sigma * np.sqrt((n - 6) / (5 - 1))
            )
            cases[n, sigma] = max(1, int(np.ceil(log / promise.rate)))
    longest = max(cases.values())
    states = linear.run(tasks, B0, np.zeros(1), local_steps=40, lr=lr, num_rounds=longest)
    for (n, sigma), T in cases.items():
        options = dict(num_samples=n, noise_std=sigma)
        for theta in tasks.theta:  # of length 1 at most
            head = linear.fine_tuning_risk(states[T][0], theta, **options)
            assert head < linear.scratch_risk(5, theta, **options)


def test_cor_fine_tuning_floor_needs_enough_rounds():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(np.eye(5)[:, :1], np.array([[1.0], [-1.0]]))
    lr = linear.largest_lr(tasks, distance=0.6, local_steps=40)
    B0 = linear.matched_start(tasks, lr=lr, distance=0.6, rng=rng)
    B = linear.run(tasks, B0, np.zeros(1), local_steps=40, lr=lr, num_rounds=5)[-1][0]
    options = dict(num_samples=400, noise_std=0.3)
    head = linear.fine_tuning_risk(B, tasks.theta[0], **options)
    assert head > linear.scratch_risk(5, tasks.theta[0], **options)
