"""The linear theory at the edges of float64, with every type of number, and with nonsense."""

import math
from fractions import Fraction
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.linalg import norm, svd

from fedlib import linear
from fedlib.linear import exact

seeds = st.integers(0, 2**32 - 1)
some = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PAIR = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def matched(distance, lr):
    return np.array([[math.sqrt(1 - distance**2)], [distance], [0.0]]) / math.sqrt(lr)


# --- Conditions and promises ----------------------------------------------------------------------


def exact_least_eigenvalue(heads):
    """Least eigenvalue of the covariance of k = 3 heads, by bisection in fractions."""
    rows = [[Fraction(float(x)) for x in head] for head in heads]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    rows = [[x - m for x, m in zip(row, means, strict=True)] for row in rows]
    C = [[sum(r[i] * r[j] for r in rows) / len(rows) for j in range(3)] for i in range(3)]

    def definite(x):  # all leading minors of C - x I are positive
        A = [[C[i][j] - (x if i == j else 0) for j in range(3)] for i in range(3)]
        two = A[0][0] * A[1][1] - A[0][1] * A[1][0]
        three = A[2][2] * two - A[2][1] * (A[0][0] * A[2 - 1][2] - A[0][2] * A[1][0])
        three += A[2][0] * (A[0][1] * A[1][2] - A[0][2] * A[1][1])
        return A[0][0] > 0 and two > 0 and three > 0

    low, high = Fraction(0), C[0][0]
    for _ in range(120):
        middle = Fraction(float((low + high) / 2)) if low else (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if definite(middle) else (low, middle)
    return low


@pytest.mark.parametrize("condition", [1e6, 1e11])
def test_diversity_keeps_its_digits(condition):
    tasks = linear.LinearTasks.random(8, 3, 8, rng=np.random.default_rng(3), condition=condition)
    truth = exact_least_eigenvalue(tasks.heads)
    assert tasks.diversity == pytest.approx(float(truth), rel=1e-9)
    assert Fraction(tasks.proven_diversity) * Fraction(tasks.L_max) ** 2 <= truth
    assert tasks.proven_diversity == pytest.approx(tasks.diversity, rel=1e-8)


def test_a_condition_that_fails_by_a_billionth_does_not_hold():
    rng = np.random.default_rng(3)
    tasks = linear.LinearTasks.random(8, 3, 8, rng=rng, condition=1e10)
    truth = exact_least_eigenvalue(tasks.heads)
    lr = linear.largest_lr(tasks, distance=0.5, local_steps=5)
    for factor, holds in [(1.0, True), (1 + 2e-9, False)]:
        eta = (lr * factor * tasks.L_max) ** 2
        rho = 0.75 * float(truth) / tasks.L_max**2
        assert (eta * (12 + 15 * math.log(4 / 3)) <= rho**2 / 40) == holds  # (C1), to 1e-12
        B0 = linear.matched_start(tasks, lr=lr * factor, distance=0.5, rng=rng)
        promise = linear.guarantee(tasks, B0, local_steps=5, lr=lr * factor)
        names = [c.name[:4] for c in promise.conditions if not c.holds and "matched" not in c.name]
        assert names == ([] if holds else ["(C1)"])


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.999), st.integers(1, 50), st.floats(-6, 0), st.floats(-300, 0))
def test_rounds_are_the_first_at_which_the_bound_is_there(distance, tau, log_lr, log_epsilon):
    lr, epsilon = 10**log_lr, 10**log_epsilon
    promise = linear.guarantee(PAIR, matched(distance, lr), local_steps=tau, lr=lr)
    t = promise.rounds(epsilon)
    if t == 0:
        assert epsilon >= 1 or 1.013 * promise.bound(0) <= epsilon
    elif math.isinf(t):
        assert 1.013 * promise.bound(2**63 - 1) > epsilon
    else:
        assert 1.013 * promise.bound(t) <= epsilon < 1.013 * promise.bound(t - 1)


def test_rounds_use_the_better_of_the_two_bounds():
    lr = linear.largest_lr(PAIR, distance=0.1, local_steps=2)
    promise = linear.guarantee(PAIR, matched(0.1, lr), local_steps=2, lr=lr)
    assert promise.holds
    t = np.arange(6000)
    bounds = (
        0.1 * (1 - 0.75 * lr**2 * 0.99) ** t,
        0.1 / math.sqrt(0.99) * (1 - 0.68 * lr**2) ** t,
    )
    first = [int(np.argmax(1.013 * bound <= 1e-4)) for bound in bounds]
    assert promise.rounds(1e-4) == min(first) == 4581
    assert promise.bound(t) == pytest.approx(np.minimum(*bounds))
    assert promise.rounds(1e-320) > promise.rounds(1e-300) > 4581
    assert promise.rounds(5e-324) >= promise.rounds(1e-320)


def test_a_slow_rate_is_not_rounded_to_none():
    promise = linear.guarantee(PAIR, matched(0.5, 1e-9), local_steps=2, lr=1e-9)
    assert promise.rate == pytest.approx(0.68e-18)
    assert promise.bound(10**18) == pytest.approx(0.5 * math.exp(-0.5625), rel=1e-6)
    slow, fast = math.log(2.026) / 0.5625, math.log(2.026 / math.sqrt(0.75)) / 0.68
    assert promise.rounds(0.25) == pytest.approx(min(slow, fast) * 1e18, rel=1e-6)


@pytest.mark.usefixtures("as_readers_run_it")
def test_rounds_before_the_first_are_refused():
    promise = linear.guarantee(PAIR, matched(0.5, 0.01), local_steps=2, lr=0.01)
    for nonsense in (-1, [3, -1], np.int8(-5)):
        with pytest.raises(ValueError, match="^Invalid round_num"):
            promise.bound(nonsense)
    for nonsense in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="^Invalid epsilon"):
            promise.rounds(nonsense)
    assert promise.bound(np.uint8(200)) == promise.bound(200)


def test_a_step_beyond_all_bounds_is_promised_nothing():
    promise = linear.guarantee(PAIR, matched(0.5, 1e160), local_steps=2, lr=1e160)
    assert not promise.holds
    assert promise.rate == promise.eta == math.inf
    assert promise.rounds(0.1) == promise.bound(7) == math.inf
    alike = linear.LinearTasks(np.eye(3)[:, :1], np.ones((2, 1)))
    promise = linear.guarantee(alike, matched(0.5, 1e160), local_steps=2, lr=1e160)
    assert (promise.rate, promise.bound(9)) == (0, promise.D0)


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e-5, 1e170, 1e300])
def test_a_guarantee_knows_no_unit(size):
    tasks = linear.LinearTasks(PAIR.B_star, size * PAIR.heads)
    assert tasks.L_max == size
    assert tasks.normalised().heads == pytest.approx(PAIR.heads)
    for lr in (linear.largest_lr(PAIR, distance=0.6, local_steps=10), 0.3):
        one = linear.guarantee(PAIR, matched(0.6, lr), local_steps=10, lr=lr)
        B0 = matched(0.6, lr) * math.sqrt(size)
        other = linear.guarantee(tasks, B0, local_steps=10, lr=lr / size)
        assert other.holds == one.holds
        for name in ("eta", "mu2", "D0", "rho", "delta_bar", "rate"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
        assert other.rounds(0.01) == pytest.approx(one.rounds(0.01), abs=1)
    options = dict(distance=0.6, num_rounds=10, failure=0.1)
    needed = linear.cohort_needed(tasks, **options)
    assert needed.size == linear.cohort_needed(PAIR, **options).size
    assert needed.mean_drift / size == pytest.approx(
        linear.cohort_needed(PAIR, **options).mean_drift
    )
    kept = linear.asymptotic_rate(tasks, local_steps=3, lr=0.1 / size)
    assert kept == pytest.approx(linear.asymptotic_rate(PAIR, local_steps=3, lr=0.1))


def test_rates_are_named_for_what_they_are():
    # the distance keeps the one, and loses the other, up to the theorem's constant
    promise = linear.guarantee(PAIR, matched(0.1, 0.01), local_steps=2, lr=0.01)
    kept = linear.asymptotic_rate(PAIR, local_steps=2, lr=0.01)
    assert promise.rate == pytest.approx(0.68 * (1 - kept))
    for words, text in [
        ("lost", linear.Guarantee.rate.__doc__),
        ("keeps", linear.asymptotic_rate.__doc__),
    ]:
        assert f"*{words}*" in text


def test_a_factor_below_zero_is_refused():
    assert linear.asymptotic_rate(PAIR, local_steps=2, lr=1.0) == 0
    for lr in (1.01, 1e100, 1e300):
        with pytest.raises(ValueError, match=r"^Invalid lr.*Use lr <= 1.$"):
            linear.asymptotic_rate(PAIR, local_steps=2, lr=lr)
    flat = linear.LinearTasks(np.eye(4)[:, :2], np.array([[1.0, 0.3], [0.5, 0.15]]))
    assert linear.asymptotic_rate(flat, local_steps=4, lr=1e300) == 1  # nothing is learned


def test_rare_failures_need_more_clients():
    options = dict(distance=0.2, num_rounds=1000)
    sizes = [linear.cohort_needed(PAIR, failure=q, **options).size for q in (0.1, 1e-300, 5e-324)]
    assert sizes == sorted(sizes)
    spread = 1 + math.sqrt(2 * (math.log(3000) + 1074 * math.log(2)))  # 5e-324 is 2^-1074
    assert sizes[-1] == math.ceil(450 / 0.96 * spread**2)


# --- Tasks ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(0, 30), st.floats(0, 12), st.floats(0, 3))
def test_random_tasks_are_as_asked_at_the_edge(seed, k, more, log_condition, log_mean):
    condition, rng = 10**log_condition, np.random.default_rng(seed)
    mean_size = 10**log_mean
    tasks = linear.LinearTasks.random(
        k + 1, k, k + 1 + more, rng=rng, condition=condition, mean_size=mean_size
    )
    centred = tasks.heads - tasks.mean_head
    s = svd(centred, compute_uv=False)
    assert (s[0] / s[-1]) ** 2 == pytest.approx(condition if k > 1 else 1, rel=1e-5)
    spread = math.sqrt((centred**2).sum() / len(centred))
    assert norm(tasks.mean_head) / spread == pytest.approx(mean_size, rel=1e-6)


@pytest.mark.parametrize("option", [dict(condition=1e20), dict(condition=1e12, mean_size=1e4)])
def test_what_float64_cannot_hold_is_refused(option):
    with pytest.raises(ValueError, match="^Invalid (condition|mean_size)"):
        linear.LinearTasks.random(9, 3, 9, rng=np.random.default_rng(0), **option)


def test_too_few_matrices_are_told_how_many_are_needed():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="Use num_clients >= 3"):
        linear.LinearTasks.random(9, 5, 2, rng=rng, num_outputs=3)
    tasks = linear.LinearTasks.random(9, 5, 3, rng=rng, num_outputs=3)
    assert tasks.diversity > 0.01 * tasks.head_covariance.max()


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e200, 1.7e308])
def test_properties_of_tasks_at_any_scale(size):
    heads = np.array([[1.0, 0.5], [-1.0, 0.5], [0.0, -0.5]])
    one, tasks = (linear.LinearTasks(np.eye(4)[:, :2], s * heads) for s in (1.0, size))
    if size > 1e-300:
        assert tasks.normalised().heads == pytest.approx(one.normalised().heads)
        assert tasks.mean_head == pytest.approx(size * one.mean_head)
    assert tasks.diversity == (math.inf if size > 1 else 0)
    for value in (tasks.L_max, tasks.diversity, tasks.second_moment, tasks.head_covariance):
        assert not np.isnan(value).any()
    assert (tasks.second_moment.diagonal() >= 0).all()


# --- Floors ---------------------------------------------------------------------------------------


def faint_mean(rng, k, size):
    """Heads ± e_1, ± e_2, … whose mean is a faint direction."""
    heads = np.vstack([np.eye(k), -np.eye(k)])
    faint = rng.standard_normal(k)
    return heads + size * faint / norm(faint)


def test_a_faint_mean_head_lowers_the_floor():
    heads = np.array([[1.0, 0], [-1.0, 0], [5e-13, 1], [5e-13, -1]])
    tasks = linear.LinearTasks(np.eye(4)[:, :2], heads)
    B0 = 1e-3 * np.array([[0.436, 0], [0, 1], [0.9, 0], [0, 0]])
    assert linear.one_step_floor(tasks, B0) < 1e-12
    traj = linear.run(tasks, B0, np.array([1.5, 0.0]), local_steps=1, lr=0.3, num_rounds=3000)
    assert traj.distance[-1] < 1e-100


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 3), st.floats(-14, -1), st.floats(-5, 0), st.floats(0.3, 1.5))
def test_no_run_gets_below_its_floor(seed, k, log_mean, log_body, head):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks(orthonormal(rng, k + 2, k), faint_mean(rng, k, 10**log_mean))
    B0 = 10**log_body * orthonormal(rng, k + 2, k)
    floor = linear.one_step_floor(tasks, B0)
    w0 = head * orthonormal(rng, k, k)[0]
    traj = linear.run(tasks, B0, w0, local_steps=1, lr=0.3, num_rounds=400)
    assert floor <= traj.distance[traj.condition < 1e6].min() + 1e-8
    assert linear.span_floor(tasks, B0) <= floor + 1e-12


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(1, 300), st.floats(-250, 250), st.floats(-250, 250))
def test_floors_know_no_unit(seed, k, more, log_heads, log_body):
    rng = np.random.default_rng(seed)
    heads, B0 = rng.standard_normal((5, k)), rng.standard_normal((k + more, k))
    worst = linear.worst_case_tasks(10**log_body * B0, 10**log_heads * heads, distance=0.7)
    assert linear.one_step_floor(worst, 10**log_body * B0) == pytest.approx(0.7, abs=1e-9)
    tasks = linear.LinearTasks(orthonormal(rng, k + more, k), heads)
    scaled = linear.LinearTasks(tasks.B_star, 10**log_heads * heads)
    for floor in (linear.one_step_floor, linear.span_floor):
        assert floor(scaled, 10**log_body * B0) == pytest.approx(floor(tasks, B0), abs=1e-9)


# --- Risks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e200, 1e155, 1e-200])
def test_risks_are_quadratic_at_any_scale(size):
    rng = np.random.default_rng(0)
    B, theta, w = rng.standard_normal((6, 2)), rng.standard_normal(6), rng.standard_normal(2)
    n = np.array([1, 2, 3, 4, 6, 7, 30])

    def risks(s):
        options = dict(num_samples=n, noise_std=0.5 * s)
        return [
            linear.fine_tuning_risk(B, s * theta, **options),
            linear.scratch_risk(6, s * theta, **options),
            linear.head_step_risk(B, s * w, s * theta, lr=0.1, **options),
            linear.fine_tuning_threshold(6, 2, num_samples=n + 7, noise_std=0.5 * s),
        ]

    half = math.sqrt(size)  # in two steps, so that squares stay floats
    for one, other in zip(risks(1.0), risks(size), strict=True):
        assert other == pytest.approx(one * size**2 if abs(math.log10(size)) < 150 else other)
        assert (other == (np.inf if size > 1 else 0))[np.isfinite(one)].all()
        assert (other == np.inf)[np.isinf(one)].all()
    for one, other in zip(risks(1.0), risks(half), strict=True):
        assert other == pytest.approx(one * half**2)


def test_a_truth_beyond_the_body_has_an_infinite_risk():
    B, far = np.eye(5)[:, :2], 1e200 * np.eye(5)[4]
    assert linear.fine_tuning_risk(B, far, num_samples=20, noise_std=1.0) == np.inf
    inside = linear.fine_tuning_risk(B, 1e200 * np.eye(5)[0], num_samples=20, noise_std=1.0)
    assert inside == pytest.approx(0) or inside == pytest.approx(2 / 17)
    assert linear.scratch_risk(5, far, num_samples=20, noise_std=1.0) == pytest.approx(5 / 14)


def test_noise_however_faint_makes_the_pole():
    theta = np.eye(5)[0]
    for noise in (1e-200, 5e-324):
        assert linear.scratch_risk(5, theta, num_samples=5, noise_std=noise) == np.inf
    assert linear.scratch_risk(5, theta, num_samples=5, noise_std=0.0) == 0


@settings(max_examples=100, deadline=None)
@given(seeds, st.floats(-300, 300), st.floats(-150, 150), st.floats(-3, 3))
def test_a_head_step_is_the_same_in_any_unit_of_the_body(seed, log_lr, log_body, log_step):
    rng = np.random.default_rng(seed)
    B, w, theta = orthonormal(rng, 6, 2), rng.standard_normal(2), rng.standard_normal(6)
    step, size = 10**log_step, 10**log_body
    options = dict(num_samples=np.array([1, 5, 10**9]), noise_std=0.3)
    one = linear.head_step_risk(B, w, theta, lr=step, **options)
    assert (one > 0).all()
    other = linear.head_step_risk(size * B, w / size, theta, lr=step / size**2, **options)
    assert other == pytest.approx(one, rel=1e-9)
    anything = linear.head_step_risk(size * B, w, theta, lr=10**log_lr, **options)
    assert (anything >= 0).all()


def test_many_inputs_need_no_square_matrix():
    d = 100_000
    theta = np.zeros(d)
    theta[0] = 1
    found = linear.scratch_risk(d, theta, num_samples=10 * d, noise_std=1.0)
    assert found == pytest.approx(d / (9 * d - 1))
    B0 = np.zeros((d, 2))
    B0[[0, 1], [0, 1]] = 1
    tasks = linear.worst_case_tasks(B0, np.eye(2), distance=0.9)
    assert linear.one_step_floor(tasks, B0) == pytest.approx(0.9)


# --- Runs -----------------------------------------------------------------------------------------

TASKS = linear.LinearTasks(np.eye(4)[:, :2], np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]]))
BODY, HEAD = np.eye(4)[:, 1:3], np.array([0.5, 0.1])


@pytest.mark.usefixtures("as_readers_run_it")
@pytest.mark.parametrize(
    "call",
    [
        lambda: linear.run(TASKS, BODY, HEAD, local_steps=2, lr=0.1, num_rounds=10**12),
        lambda: linear.one_round(TASKS, BODY, HEAD, local_steps=10**12, lr=0.1),
        lambda: linear.LinearTasks.random(10**12, 2, 9, rng=np.random.default_rng(0)),
        lambda: linear.LinearTasks.random(9, 2, 10**12, rng=np.random.default_rng(0)),
        lambda: linear.run(
            TASKS, BODY, HEAD, local_steps=2, lr=0.1, num_rounds=1,
            cohort_size=10**12, replace=True, rng=np.random.default_rng(0),
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_memory_is_refused_before_work(call):
    with pytest.raises(ValueError, match="^Invalid .* its arrays take .* GB"):
        call()


@pytest.mark.usefixtures("as_readers_run_it")
def test_clients_of_a_round_exist():
    for nobody in ((), [], [-1], [0, 3], np.array([], dtype=int), [[0]], 1):
        with pytest.raises(ValueError, match="^Invalid clients"):
            linear.one_round(TASKS, BODY, HEAD, local_steps=2, lr=0.1, clients=nobody)
    for nonsense in ([0.0], [True], ["a"], np.array([True, False, True])):
        with pytest.raises(TypeError, match="^Invalid clients"):
            linear.one_round(TASKS, BODY, HEAD, local_steps=2, lr=0.1, clients=nonsense)


def test_a_long_run_shows_its_progress(capsys, monkeypatch):
    from fedlib.linear import _arrays

    minutes = count()
    monkeypatch.setattr(_arrays, "time", SimpleNamespace(monotonic=lambda: 61 * next(minutes)))
    options = dict(local_steps=2, lr=0.1, num_rounds=3)
    linear.run(TASKS, BODY, HEAD, **options)
    assert "rounds" in capsys.readouterr().err
    linear.run(TASKS, BODY, HEAD, progress=False, **options)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("size", [1e-150, 1e-100, 1e100])
def test_a_run_knows_no_unit(size):
    # Heads times size, bodies times its root, the step over it: the same run.
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(TASKS.B_star, size * TASKS.heads)
    root, B0 = math.sqrt(size), orthonormal(rng, 4, 2)
    options = dict(local_steps=3, num_rounds=50)
    one = linear.run(TASKS, B0, HEAD, lr=0.2, **options)
    other = linear.run(tasks, root * B0, root * HEAD, lr=0.2 / size, **options)
    for name in ("distance", "condition", "delta", "D"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6, abs=1e-12)


def test_rounds_that_a_run_lacks_are_named():
    traj = linear.run(TASKS, BODY, HEAD, local_steps=2, lr=0.1, num_rounds=3)
    assert len(list(traj)) == 4
    with pytest.raises(IndexError, match="^Invalid round_num=4: .* from 0 to 3"):
        traj[4]


# --- Exact arithmetic -----------------------------------------------------------------------------


@pytest.mark.usefixtures("as_readers_run_it")
@pytest.mark.parametrize(
    "displayed", ["abc", "", "1/0", "1e999999999", "nan", None, 0.5, True, "1_0"]
)
def test_a_decimal_is_a_decimal(displayed):
    with pytest.raises((TypeError, ValueError), match="^Invalid displayed"):
        exact.up(Fraction(1, 3), displayed)


def test_proofs_of_numbers_beyond_all_floats():
    with pytest.raises(ValueError, match="beyond all floats"):
        exact.up(10**5000, "1e400")
    assert exact.down(10**400, "1e400") == 10**400


# --- Everything -----------------------------------------------------------------------------------


def instance(seed):
    """Arguments for every public function, at scales from 1e-300 to 1e300."""
    rng = np.random.default_rng(seed)

    def size():
        return 10.0 ** rng.choice([0, 0, -1, -3, -160, -300, 3, 160, 300])

    k = int(rng.integers(1, 4))
    d, M = k + int(rng.integers(1, 4)), int(rng.integers(1, 6))
    outputs = [(), (), (1,), (3,)][rng.integers(4)]
    heads = (
        rng.standard_normal((M, k, *outputs)) if rng.random() < 0.8 else np.ones((M, k, *outputs))
    )
    tasks = linear.LinearTasks(orthonormal(rng, d, k), size() * heads)
    B, w = size() * rng.standard_normal((d, k)), size() * rng.standard_normal((k, *outputs))
    theta, v = size() * rng.standard_normal(d), size() * rng.standard_normal(k)
    lr, tau, distance = size(), int(rng.integers(1, 4)), float(rng.choice([0.0, 0.5, 1 - 1e-16]))
    noise, n = float(rng.choice([0.0, size()])), rng.integers(1, 12, 4)
    risk = dict(num_samples=n, noise_std=noise)
    both = dict(local_steps=tau, lr=lr)
    return {
        "LinearTasks": (linear.LinearTasks, dict(B_star=tasks.B_star, heads=tasks.heads)),
        "random": (
            linear.LinearTasks.random,
            dict(d=d, k=k, num_clients=k + 2, rng=rng, condition=10 ** rng.uniform(0, 12),
                 mean_size=rng.uniform(0, 100), num_outputs=None),
        ),
        "matched_start": (
            linear.matched_start, dict(tasks=tasks, lr=lr, distance=distance, rng=rng)
        ),
        "subspace_distance": (linear.subspace_distance, dict(B=B, B_star=tasks.B_star)),
        "principal_angles": (linear.principal_angles, dict(B=B, B_star=tasks.B_star)),
        "one_step_floor": (linear.one_step_floor, dict(tasks=tasks, B0=B)),
        "span_floor": (linear.span_floor, dict(tasks=tasks, B0=B)),
        "worst_case_tasks": (
            linear.worst_case_tasks, dict(B0=B, heads=tasks.heads, distance=distance)
        ),
        "guarantee": (linear.guarantee, dict(tasks=tasks, B0=B, mean_drift=noise, **both)),
        "largest_lr": (
            linear.largest_lr, dict(tasks=tasks, distance=distance, local_steps=tau + 1)
        ),
        "asymptotic_rate": (linear.asymptotic_rate, dict(tasks=tasks, **both)),
        "cohort_needed": (
            linear.cohort_needed,
            dict(tasks=tasks, distance=distance, num_rounds=tau, failure=rng.uniform()),
        ),
        "run": (
            linear.run,
            dict(tasks=tasks, B0=B, w0=w, num_rounds=3, cohort_size=None, replace=False,
                 progress=False, **both),
        ),
        "one_round": (linear.one_round, dict(tasks=tasks, B=B, w=w, clients=np.array([0]), **both)),
        "fine_tuning_risk": (linear.fine_tuning_risk, dict(B=B, theta=theta, **risk)),
        "scratch_risk": (linear.scratch_risk, dict(d=d, theta=theta, **risk)),
        "head_step_risk": (linear.head_step_risk, dict(B=B, w=v, theta=theta, lr=lr, **risk)),
        "fine_tuning_threshold": (
            linear.fine_tuning_threshold,
            dict(d=d, k=k, num_samples=n + d + 1, noise_std=noise),
        ),
    }  # fmt: skip


# What each result may be: any pair of bounds; all but the last are numbers of one sign.
UNIT = {"subspace_distance", "one_step_floor", "span_floor", "asymptotic_rate"}


def numbers_of(name, result):
    """Everything in a result that is not negative, unless it is an array of coordinates."""
    if isinstance(result, linear.LinearTasks):
        s = result
        return [s.L_max, s.diversity, s.second_moment.diagonal(), s.proven_diversity]
    if isinstance(result, linear.Guarantee):
        bounds = [result.bound(t) for t in (0, 1, 10**6)]
        promised = [result.rounds(epsilon) for epsilon in (0.5, 1e-300)]
        margins = [condition.margin for condition in result.conditions]
        return [result.eta, result.mu2, result.E0, result.rate, *bounds, *promised, *margins]
    if isinstance(result, linear.Trajectory):
        return [result.distance, result.delta, result.D, result.condition]
    if name == "one_round":
        return [0.0 * value for value in result]
    return [np.asarray(value) for value in (result if isinstance(result, tuple) else (result,))]


def outcome(function, arguments):
    """What a call returns, and what it raises instead."""
    try:
        return function(**arguments), None
    except (FloatingPointError, TypeError, ValueError) as error:
        return None, error


# These refuse some valid arguments too: no theorem for such tasks, or no float for the answer.
MAY_REFUSE = {
    "worst_case_tasks", "guarantee", "largest_lr", "asymptotic_rate", "cohort_needed",
}  # fmt: skip


@some
@given(seeds)
def test_valid_arguments_at_any_scale_give_numbers_of_the_right_sign(seed):
    for name, (function, arguments) in instance(seed).items():
        result, error = outcome(function, arguments)
        if isinstance(error, FloatingPointError):
            assert "diverged" in str(error)
        elif error is not None:
            assert name in MAY_REFUSE, (name, error)
            assert str(error).startswith("Invalid "), (name, error)
        elif name == "matched_start":
            assert np.isfinite(result).all()
        else:
            for value in numbers_of(name, result):
                assert (np.asarray(value) >= 0).all(), (name, value)  # so it is no NaN either
                assert name not in UNIT or (np.asarray(value) <= 1).all(), (name, value)


NONSENSE = [
    None, "a", "3", True, 1j, math.nan, math.inf, -math.inf, -1, 0, 2.5, 10**400, -(10**400), b"x",
    [], (), {}, object(), [[1.0], [1.0, 2.0]], np.zeros(0), np.zeros((0, 3)),
    np.zeros((2, 2, 2, 2)), np.array(["a"]), np.array([object()]), np.full((3, 2), np.nan),
    np.full((3, 2), 1e300 * 1j), np.array([[True]]), [[None]],
    np.float64(0.5), np.int8(-3), np.uint64(2**64 - 1),
    Fraction(1, 3), np.array(3), 5e-324, 1e308, -0.0, linear, lambda: 1,
]  # fmt: skip
BY_TIME = {"local_steps", "num_rounds"}  # large ones are valid, and take hours


@pytest.mark.usefixtures("as_readers_run_it")
def test_nonsense_for_any_argument_is_refused_in_a_sentence():
    num_accepted = num_refused = 0
    for seed in range(3):
        for name, (function, arguments) in instance(seed).items():
            for argument in arguments:
                for nonsense in NONSENSE:
                    if argument in BY_TIME and isinstance(nonsense, np.uint64):
                        continue
                    _, error = outcome(function, arguments | {argument: nonsense})
                    what = name, argument, nonsense, error
                    if isinstance(error, FloatingPointError):
                        assert "diverged" in str(error), what
                    elif error is not None:
                        assert str(error).startswith("Invalid "), what
                        num_refused += 1
                    else:
                        num_accepted += 1
    assert num_refused > 5 * num_accepted


@pytest.mark.usefixtures("as_readers_run_it")
def test_numbers_of_any_type_are_the_numbers_that_they_are():
    floats = dict.fromkeys(("lr", "noise_std", "distance", "failure"), 0.125)
    for name, (function, arguments) in instance(7).items():
        plain = arguments | {key: x for key, x in floats.items() if key in arguments}
        for argument, value in plain.items():
            kinds = ()
            if type(value) is int:
                kinds = int, np.uint8, np.int8, np.int64, np.uint64
            elif argument in floats:
                kinds = float, np.float16, np.float32, np.float64, Fraction
            found = set()
            for kind in kinds:
                drawn = {"rng": np.random.default_rng(0)} if "rng" in plain else {}
                result, error = outcome(function, plain | drawn | {argument: kind(value)})
                shown = repr(numbers_of(name, result)) if error is None else str(error)
                found.add(shown.split(": ")[-1])
            assert len(found) <= 1, (name, argument, found)


@pytest.mark.usefixtures("as_readers_run_it")
@pytest.mark.parametrize("kind", [int, np.uint8, np.int16, np.uint64])
def test_eight_bits_do_not_overflow(kind):
    options = dict(distance=0.2, failure=0.05)
    assert linear.cohort_needed(PAIR, num_rounds=kind(200), **options).size == 13338


@pytest.mark.parametrize(("size", "w", "lr"), [(1e200, 1.0, 1.0), (1e120, 0.0, 1e200)])
def test_a_head_step_beyond_all_floats_has_infinite_risk(size, w, lr):
    B, w = np.eye(5)[:, :2] * size, np.full(2, w)
    found = linear.head_step_risk(B, w, np.eye(5)[0], num_samples=5, noise_std=1.0, lr=lr)
    assert found == math.inf


def test_a_column_far_shorter_than_another_is_a_direction_all_the_same():
    tasks = linear.LinearTasks(np.eye(3)[:, :2], np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    for short in (1e-17, 1e-300):
        B0 = np.array([[1, 0], [0, short], [0, 0]])
        assert linear.one_step_floor(tasks, B0) == linear.span_floor(tasks, B0) == 0
        risk = linear.fine_tuning_risk(B0, np.eye(3)[1], num_samples=13, noise_std=1.0)
        assert risk == pytest.approx(0.2)


@pytest.mark.parametrize("distance", [1 - 4e-13, 1 - 1e-15])
def test_no_step_size_is_promised_where_rounding_decides(distance):
    with pytest.raises(ValueError, match="Invalid distance=.* rounding decides"):
        linear.largest_lr(PAIR, distance=distance, local_steps=2)


def test_a_truth_value_is_no_round(as_readers_run_it):
    traj = linear.run(PAIR, np.eye(3)[:, :1], np.zeros(1), local_steps=1, lr=0.1, num_rounds=2)
    with pytest.raises(IndexError, match="Invalid round_num=True"):
        traj[True]


def test_floats_longer_than_float64_are_finite_in_it_or_refused(as_readers_run_it):
    with pytest.raises(ValueError, match="Invalid B: NaN or infinity"):
        linear.subspace_distance(np.array([[np.longdouble("1e4000")]]), np.eye(1))


@pytest.mark.parametrize("num_clients", [9, 30])  # nine are so few that they are whitened otherwise
def test_random_tasks_do_not_depend_on_the_signs_that_lapack_gives(num_clients, monkeypatch):
    def drawn():
        rng = np.random.default_rng(4)
        return linear.LinearTasks.random(12, 8, num_clients, rng=rng, condition=1e5)

    before, real = drawn(), {name: getattr(np.linalg, name) for name in ("svd", "eigh")}

    def other_svd(A, full_matrices=True):
        U, s, Vt = real["svd"](A, full_matrices=full_matrices)
        signs = (-1.0) ** np.arange(len(s))
        U[:, : len(s)] *= signs
        Vt[: len(s)] *= signs[:, None]
        return U, s, Vt

    def other_eigh(A):
        values, vectors = real["eigh"](A)
        return values, -vectors

    monkeypatch.setattr(np.linalg, "svd", other_svd)
    monkeypatch.setattr(np.linalg, "eigh", other_eigh)
    assert np.allclose(drawn().heads, before.heads, rtol=0, atol=1e-9)
