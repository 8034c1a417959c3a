"""The library of the linear theory against plain loops, SciPy and the engine."""

from time import perf_counter

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, norm

import fedlib as fl
from fedlib import linear

many = settings(max_examples=200, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def loop(tasks, B, w, tau, lr, num_rounds):
    """FedAvg as the algorithm says it: one client after the other, all d dimensions."""
    path = [(B, w)]
    for _ in range(num_rounds):
        ends = []
        for head in tasks.heads:
            b, v = path[-1]
            for _ in range(tau):
                r = b @ v - tasks.B_star @ head
                b, v = (
                    b - lr * np.multiply.outer(r, v) if v.ndim == 1 else b - lr * r @ v.T,
                    (v - lr * b.T @ r),
                )
            ends.append((b, v))
        path.append(tuple(sum(values) / len(ends) for values in zip(*ends, strict=True)))
    return [np.array(values) for values in zip(*path, strict=True)]


@st.composite
def runs(draw):
    """Tasks, a start, and settings under which runs of a dozen rounds stay bounded."""
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, 4))
    d = k + draw(st.integers(1, 6))
    c = draw(st.sampled_from([None, 1, 3]))
    outputs = () if c is None else (c,)
    heads = rng.standard_normal((draw(st.integers(1, 6)), k, *outputs))
    heads *= draw(st.floats(0.2, 2.0)) / np.sqrt(
        (heads**2).sum(axis=(1, *range(2, heads.ndim))).max()
    )
    B_star = orthonormal(rng, d, k)
    B0 = draw(st.floats(0.1, 1.5)) * orthonormal(rng, d, k)
    w0 = draw(st.sampled_from([0.0, 0.5])) * rng.standard_normal((k, *outputs))
    return (B_star, heads), B0, w0, draw(st.integers(1, 6)), draw(st.floats(0.01, 0.15))


# --- Running ------------------------------------------------------------------------------------


@many
@given(runs())
def test_run_is_the_plain_loop(instance):
    truth, B0, w0, tau, lr = instance
    tasks = linear.LinearTasks(*truth)
    B, w = loop(tasks, B0, w0, tau, lr, 12)
    traj = linear.run(tasks, B0, w0, local_steps=tau, lr=lr, num_rounds=12)
    assert abs(traj.B - B).max() <= 1e-12
    assert abs(traj.w - w).max() <= 1e-12
    assert len(traj) == 13
    for t in (0, 5, -1):
        assert np.allclose(traj[t][0], B[t], rtol=0, atol=1e-12)
    Delta = np.eye(tasks.k) - lr * B.transpose(0, 2, 1) @ B
    assert traj.delta == pytest.approx(norm(Delta, 2, axis=(1, 2)), abs=1e-12)
    outside = B - tasks.B_star @ (tasks.B_star.T @ B)
    assert abs(traj.D - np.sqrt(lr) * norm(outside, 2, axis=(1, 2))).max() <= 1e-12
    for t in range(13):
        if traj.condition[t] < 1e3:
            found = linear.subspace_distance(B[t], tasks.B_star)
            assert traj.distance[t] == pytest.approx(found, abs=1e-11)


@many
@given(runs())
def test_one_round_is_a_round_of_run(instance):
    truth, B0, w0, tau, lr = instance
    tasks = linear.LinearTasks(*truth)
    played = linear.one_round(tasks, B0, w0, local_steps=tau, lr=lr)
    B, w = linear.run(tasks, B0, w0, local_steps=tau, lr=lr, num_rounds=1)[-1]
    assert abs(played.B - B).max() <= 1e-12
    assert abs(played.w - w).max() <= 1e-12
    assert abs(played.bodies[-1].mean(axis=0) - played.B).max() <= 1e-14
    assert (played.heads[0] == w0).all()
    alone = linear.one_round(tasks, B0, w0, local_steps=tau, lr=lr, clients=np.array([0]))
    assert abs(alone.bodies[:, 0] - played.bodies[:, 0]).max() <= 1e-14


def test_run_in_many_dimensions_and_for_many_clients_is_the_plain_loop():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(300, 5, 250, rng=rng, condition=5.0, mean_size=0.5)
    B0 = linear.matched_start(tasks, lr=0.1, distance=0.9, rng=rng)
    traj = linear.run(tasks, B0, np.zeros(5), local_steps=10, lr=0.1, num_rounds=3)
    B, w = loop(tasks, B0, np.zeros(5), 10, 0.1, 3)
    assert traj.basis.shape == (300, 10)
    assert abs(traj.B - B).max() <= 1e-12
    assert abs(traj.w - w).max() <= 1e-12


def test_run_takes_at_most_a_twentieth_of_a_second_a_round():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(1000, 10, 1000, rng=rng)
    B0 = linear.matched_start(tasks, lr=0.1, distance=0.9, rng=rng)
    begin = perf_counter()
    linear.run(tasks, B0, np.zeros(10), local_steps=10, lr=0.1, num_rounds=20)
    assert perf_counter() - begin < 1


def test_run_keeps_the_precision_of_small_distances():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(9, 2, 20, rng=rng)
    B0 = linear.matched_start(tasks, lr=0.3, distance=0.5, rng=rng)
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=8, lr=0.3, num_rounds=1000)
    assert 0 < traj.distance[-1] < 1e-30
    late = traj.distance[-100:] / traj.distance[-101:-1]
    assert np.ptp(late) < 1e-4  # the same factor in every round


def test_run_of_no_round_returns_the_start():
    tasks = linear.LinearTasks.random(4, 2, 5, rng=np.random.default_rng(0))
    traj = linear.run(tasks, np.eye(4)[:, :2], np.ones(2), local_steps=3, lr=0.1, num_rounds=0)
    assert traj.distance.shape == (1,)
    assert np.allclose(traj.B[0], np.eye(4)[:, :2])


@pytest.mark.parametrize("tau", [1, 3])
def test_run_with_a_cohort_of_one_plays_some_client(tau):
    rng = np.random.default_rng(1)
    tasks = linear.LinearTasks.random(5, 2, 4, rng=rng)
    B0, w0 = orthonormal(rng, 5, 2), rng.standard_normal(2)
    options = dict(local_steps=tau, lr=0.1)
    found = set()
    traj = linear.run(tasks, B0, w0, num_rounds=40, cohort_size=1, rng=rng, **options)
    for t in range(40):
        B, w = traj[t]
        ends = [linear.one_round(tasks, B, w, clients=np.array([i]), **options) for i in range(4)]
        errors = [
            abs(end.B - traj[t + 1][0]).max() + abs(end.w - traj[t + 1][1]).max() for end in ends
        ]
        assert min(errors) < 1e-12
        found.add(int(np.argmin(errors)))
    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize("tau", [1, 3])
def test_run_with_every_client_in_the_cohort_is_full_participation(tau):
    tasks = linear.LinearTasks.random(5, 2, 4, rng=np.random.default_rng(0))
    start = np.eye(5)[:, :2], np.ones(2)
    options = dict(local_steps=tau, lr=0.1, num_rounds=10)
    rng = np.random.default_rng(0)
    drawn = linear.run(tasks, *start, cohort_size=4, rng=rng, **options)
    assert np.allclose(drawn.B, linear.run(tasks, *start, **options).B, rtol=0, atol=1e-13)
    again = [
        linear.run(
            tasks, *start, cohort_size=9, replace=True, rng=np.random.default_rng(5), **options
        ).B
        for _ in range(2)
    ]
    assert (again[0] == again[1]).all()
    assert abs(again[0] - drawn.B).max() > 1e-3


@pytest.mark.parametrize("tau", [1, 4])
def test_the_engine_follows_run_on_population_equivalent_data(tau):
    # Rows √d times the unit vectors: the second moment of every client's inputs is the identity.
    d, k, num_clients, lr, num_rounds = 6, 2, 5, 0.3, 25
    tasks = linear.LinearTasks.random(
        d, k, num_clients, rng=np.random.default_rng(3), mean_size=0.5
    )
    inputs = np.sqrt(d) * np.tile(np.eye(d), (num_clients, 1))
    targets = np.sqrt(d) * tasks.theta.ravel()
    clients = fl.ClientData(
        torch.as_tensor(inputs), torch.as_tensor(targets), np.full(num_clients, d)
    )
    model = fl.LinearNet(d, k, seed=1).double()
    start = fl.params_of(model)
    config = fl.FedAvgConfig(
        num_rounds=num_rounds, local_steps=tau, cohort_size=None, batch_size=None, client_lr=lr
    )
    params, _ = fl.run_fedavg(model, clients, config, seed=0, progress=False)
    B0, w0 = start["body.weight"].numpy().T, start["head.weight"].numpy()[0]
    B, w = linear.run(tasks, B0, w0, local_steps=tau, lr=lr, num_rounds=num_rounds)[-1]
    assert abs(B - B0).max() > 0.01
    assert abs(params["body.weight"].numpy().T - B).max() <= 1e-9
    assert abs(params["head.weight"].numpy()[0] - w).max() <= 1e-9


# --- Tasks --------------------------------------------------------------------------------------


@many
@given(seeds, st.integers(1, 4), st.floats(1, 50), st.floats(0, 3), st.sampled_from([None, 2]))
def test_random_tasks_are_as_asked(seed, k, condition, mean_size, c):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(
        k + 2, k, 9, rng=rng, condition=condition, mean_size=mean_size, num_outputs=c
    )
    assert abs(tasks.B_star.T @ tasks.B_star - np.eye(k)).max() < 1e-12
    flat = tasks.heads.reshape(9, -1)
    assert norm(flat, axis=1).max() == pytest.approx(1)
    assert tasks.L_max == pytest.approx(1)
    values = eigvalsh(tasks.head_covariance)
    if k > 1:
        assert values[-1] / values[0] == pytest.approx(condition)
    assert tasks.diversity == pytest.approx(values[0])
    deviations = norm(flat - flat.mean(axis=0), axis=1)
    assert norm(flat.mean(axis=0)) == pytest.approx(
        mean_size * np.sqrt((deviations**2).mean()), abs=1e-12
    )
    means = tasks.mean_head.reshape(k, -1)
    assert np.allclose(tasks.second_moment, tasks.head_covariance + means @ means.T)


@many
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.floats(0, 1), st.floats(0.01, 3))
def test_matched_start_is_matched_and_at_its_distance(seed, k, more, distance, lr):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + more, k, k + 1, rng=rng)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    assert abs(lr * B0.T @ B0 - np.eye(k)).max() < 1e-12
    assert linear.subspace_distance(B0, tasks.B_star) == pytest.approx(distance, abs=1e-12)


def test_normalised_tasks_have_a_longest_head_of_one():
    tasks = linear.LinearTasks(np.eye(3)[:, :2], np.array([[3.0, 0.0], [0.0, 4.0]]))
    assert tasks.L_max == 4
    assert tasks.normalised().L_max == 1
    assert tasks.theta == pytest.approx(np.array([[3.0, 0, 0], [0, 4.0, 0]]))


def test_private_orders_permute_the_outputs_of_each_client():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(6, 2, 8, rng=rng, num_outputs=4)
    private = tasks.private_orders(rng=rng)
    assert np.allclose(private.second_moment, tasks.second_moment)
    assert (np.sort(private.heads[:, 0]) == np.sort(tasks.heads[:, 0])).all()
    assert abs(private.heads - tasks.heads).max() > 0.1


def test_tasks_cannot_be_changed_after_they_were_checked():
    heads = np.ones((2, 1))
    tasks = linear.LinearTasks(np.eye(2)[:, :1], heads)
    heads[0] = 7
    assert tasks.L_max == 1
    with pytest.raises(ValueError, match="read-only"):
        tasks.heads[0] = 7


# --- Distances ----------------------------------------------------------------------------------


@many
@given(seeds, st.integers(1, 4), st.integers(0, 4), st.floats(-12, 0))
def test_principal_angles_are_scipys(seed, k, more, exponent):
    rng = np.random.default_rng(seed)
    B_star = orthonormal(rng, k + more, k)
    B = B_star @ rng.standard_normal((k, k)) + 10**exponent * rng.standard_normal((k + more, k))
    angles = linear.principal_angles(B, B_star)
    if np.linalg.cond(B) < 1e3:
        assert angles == pytest.approx(scipy.linalg.subspace_angles(B, B_star), rel=1e-6, abs=1e-7)
        distance = linear.subspace_distance(B, B_star)
        assert distance == pytest.approx(np.sin(angles[0]), rel=1e-6, abs=1e-12)
    other = B @ orthonormal(rng, k, k) * 7.0
    assert linear.principal_angles(other, B_star) == pytest.approx(angles, abs=1e-6)


def test_distance_of_a_rank_deficient_body_is_one():
    B_star = np.eye(4)[:, :2]
    assert linear.subspace_distance(B_star[:, [0, 0]], B_star) == 1
    assert linear.subspace_distance(B_star[:, :1], B_star) == 1
    assert linear.principal_angles(B_star[:, [0, 0]], B_star) == pytest.approx([np.pi / 2, 0])


def test_distance_of_a_body_that_rounding_has_spoilt_is_one():
    # D-GD on a worst case whose mean head is zero, from a long head: a direction of B dies out.
    tasks = linear.worst_case_tasks(
        np.eye(4)[:, :2], np.array([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]), distance=0.5
    )
    traj = linear.run(
        tasks, np.eye(4)[:, :2], np.array([3.0, -2.0]), local_steps=1, lr=0.05, num_rounds=3000
    )
    assert traj.condition[-1] > 1e10
    assert traj.distance.min() > 0.5 - 1e-4
    assert traj.distance[-1] == 1


# --- Guarantees ---------------------------------------------------------------------------------


@many
@given(seeds, st.integers(1, 3), st.integers(2, 40), st.floats(0.01, 0.99), st.floats(0.1, 9))
def test_largest_lr_just_holds(seed, k, tau, distance, scale):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + 3, k, k + 4, rng=rng, mean_size=0.5)
    tasks = linear.LinearTasks(tasks.B_star, scale * tasks.heads)
    lr = linear.largest_lr(tasks, distance=distance, local_steps=tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr)
    assert promise.holds, str(promise)
    assert abs(promise.D0 - distance) < 1e-9
    assert min(c.margin for c in promise.conditions[-2:]) == pytest.approx(1, abs=1e-6)
    B0 = linear.matched_start(tasks, lr=1.001 * lr, distance=distance, rng=rng)
    assert not linear.guarantee(tasks, B0, local_steps=tau, lr=1.001 * lr).holds


def test_guarantee_names_each_condition_that_fails():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    start = np.array([[0.8], [0.6], [0.0]])

    def failing(tasks, start, tau, lr, **options):
        promise = linear.guarantee(tasks, start / np.sqrt(lr), local_steps=tau, lr=lr, **options)
        return [c.name.split()[0] for c in promise.conditions if not c.holds]

    assert failing(tasks, start, 2, 0.01) == []
    assert failing(tasks, start, 1, 0.01) == ["two"]
    assert failing(tasks, start, 2, 0.5) == ["(C1)", "(C2)"]
    assert failing(tasks, 1.1 * start, 2, 0.001) == ["(H3)"]
    assert failing(tasks, start, 2, 0.01, mean_drift=0.5) == ["(C1)"]
    assert failing(tasks, start, 2, 0.02, diversity=0.1) == ["(C1)"]
    alike = linear.LinearTasks(tasks.B_star, np.ones((2, 1)))
    assert "(H1)" in failing(alike, start, 2, 0.01)
    assert "start" in failing(tasks, np.array([[0.0], [0.0], [1.0]]), 2, 0.01)
    promise = linear.guarantee(tasks, 10 * start, local_steps=1, lr=0.01)
    assert "FAILS  two local steps" in str(promise)
    assert promise.rounds(0.01) == np.inf


def test_rounds_needed_fall_with_the_distance_asked_for():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    B0 = np.array([[0.8], [0.6], [0.0]]) / 0.1
    promise = linear.guarantee(tasks, B0, local_steps=2, lr=0.01)
    eta, E0 = 1e-4, 0.64  # the theorem's formulas once more, by hand
    assert abs(promise.rate - 0.68 * eta) < 1e-15
    assert abs(promise.delta_bar - (12 + 5 * E0 * np.log(1 / E0)) * eta / E0) < 1e-15
    t = np.arange(100_000)
    bounds = 0.6 * (1 - 0.75 * eta * E0) ** t, 0.6 / 0.8 * (1 - 0.68 * eta) ** t
    assert promise.rounds(1e-3) == np.argmax(1.013 * np.minimum(*bounds) <= 1e-3)
    needed = [promise.rounds(epsilon) for epsilon in (1e-6, 1e-3, 0.1, 0.9)]
    assert needed == sorted(needed, reverse=True)
    assert promise.rounds(1.0) == 0
    assert 1.013 * promise.bound(needed[1]) <= 1e-3 * (1 + 1e-9)
    assert (np.diff(promise.bound(np.arange(100))) < 0).all()


def test_a_step_too_large_is_promised_nothing():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    for lr in (0.1, 1.0, 3.0, 30.0):
        B0 = np.array([[0.8], [0.6], [0.0]]) / np.sqrt(lr)
        promise = linear.guarantee(tasks, B0, local_steps=9, lr=lr)
        factors = 1 - promise.rate, promise.contraction(promise.D0)
        assert promise.holds <= (min(factors) > 0)
        bounds = promise.bound(np.arange(50))
        assert (bounds >= 0).all()
        assert np.isinf(bounds).all() == (max(factors) < 0)
        assert promise.bound(3) == bounds[3]


# --- What is refused ----------------------------------------------------------------------------

GOOD = np.array([[1.0, 0.0], [0.0, 1.0]])
START = np.eye(4)[:, :2]
RNG = np.random.default_rng(0)


def tasks_for_errors():
    return linear.LinearTasks(START, GOOD)


@pytest.mark.usefixtures("as_readers_run_it")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.LinearTasks(2 * START, GOOD), "Invalid B_star: its columns are not"),
        (lambda: linear.LinearTasks(np.eye(2), GOOD), "Invalid B_star: k=2 columns fill d=2"),
        (lambda: linear.LinearTasks(START, np.eye(3)), r"heads: its shape is \(3, 3\)"),
        (lambda: linear.LinearTasks(START, 0 * GOOD), "Invalid heads: all are zero"),
        (lambda: linear.LinearTasks(START, np.nan * GOOD), "Invalid heads: NaN or infinity"),
        (lambda: linear.LinearTasks.random(2, 2, 9, rng=RNG), "Invalid k=2: there are d=2 inputs"),
        (lambda: linear.LinearTasks.random(5, 3, 3, rng=RNG), "Use num_clients >= 4"),
        (lambda: linear.LinearTasks.random(5, 2, 9, rng=RNG, condition=0.5), "condition=0.5: must"),
        (lambda: linear.LinearTasks.random(5, 2, 9, rng=RNG, mean_size=-1), "mean_size=-1: must"),
        (lambda: tasks_for_errors().private_orders(rng=RNG), "one output has one order"),
        (lambda: linear.subspace_distance(np.eye(3), START), r"B: its shape is \(3, 3\)"),
        (
            lambda: simple_run(B0=np.eye(4)[:, :1]),
            r"Invalid B0: shape \(4, 1\): the truth has 2 features.*2 <= k <= 4",
        ),
        (lambda: simple_run(w0=np.zeros(3)), r"Invalid w0: its shape is \(3,\). Use shape \(2\)"),
        (lambda: simple_run(local_steps=0), "Invalid local_steps=0"),
        (lambda: simple_run(lr=0.0), "Invalid lr=0.0"),
        (lambda: simple_run(num_rounds=-1), "Invalid num_rounds=-1"),
        (lambda: simple_run(cohort_size=3, rng=RNG), "Invalid cohort_size=3: there are 2 clients"),
        (lambda: linear.worst_case_tasks(START, GOOD, distance=1.5), "Invalid distance=1.5"),
        (lambda: linear.worst_case_tasks(0 * START, GOOD, distance=0.5), "its rank is 0"),
        (
            lambda: linear.worst_case_tasks(START[:, :1], np.ones((2, 1)), distance=0.5),
            "their mean has rank k=1, so one step can learn",
        ),
        (
            lambda: linear.matched_start(tasks_for_errors(), lr=0.1, distance=2, rng=RNG),
            "distance=2",
        ),
        (
            lambda: linear.largest_lr(tasks_for_errors(), distance=0.5, local_steps=2),
            "the heads lie in a hyperplane",
        ),
        (
            lambda: linear.fine_tuning_threshold(9, 2, num_samples=10, noise_std=1.0),
            "Use num_samples >= 11",
        ),
        (lambda: linear.scratch_risk(2, np.ones(3), num_samples=5, noise_std=1.0), "theta"),
        (lambda: linear.scratch_risk(3, np.ones(3), num_samples=0, noise_std=1.0), "num_samples=0"),
        (lambda: linear.scratch_risk(3, np.ones(3), num_samples=5, noise_std=-1.0), "noise_std"),
        (
            lambda: linear.cohort_needed(
                linear.LinearTasks(START, np.vstack([GOOD, -GOOD])),
                distance=0.5,
                num_rounds=5,
                failure=2.0,
            ),
            "Invalid failure=2.0",
        ),
    ],
)
def test_nonsense_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def simple_run(**changes):
    options = dict(B0=START, w0=np.zeros(2), local_steps=2, lr=0.1, num_rounds=3) | changes
    return linear.run(tasks_for_errors(), options.pop("B0"), options.pop("w0"), **options)


@pytest.mark.usefixtures("as_readers_run_it")
def test_a_cohort_needs_a_generator():
    with pytest.raises(TypeError, match="Invalid rng=None"):
        simple_run(cohort_size=1)


@pytest.mark.parametrize("tau", [1, 3])
def test_a_diverging_run_names_the_round_and_the_step_size(tau):
    with pytest.raises(FloatingPointError, match=r"in round \d+. Use a lr smaller than 3.0"):
        simple_run(lr=3.0, local_steps=tau, num_rounds=1000)


def test_linear_reads_no_global_generator():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    tasks = linear.LinearTasks.random(5, 2, 4, rng=np.random.default_rng(0))
    linear.run(
        tasks,
        np.eye(5)[:, :2],
        np.zeros(2),
        local_steps=2,
        lr=0.1,
        num_rounds=5,
        cohort_size=2,
        rng=np.random.default_rng(0),
    )
    assert (np.random.get_state()[1] == before).all()


def test_what_is_cached_cannot_be_changed():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.ones((2, 1)))
    with pytest.raises(ValueError, match="read-only"):
        tasks.mean_head[:] = 0


def test_a_body_that_holds_the_truth_has_no_risk_without_noise():
    B = np.random.default_rng(0).standard_normal((20, 3))
    assert linear.fine_tuning_risk(B, B @ np.ones(3), num_samples=3, noise_std=0.0) == 0


def test_counts_of_any_integer_type_are_counts():
    n = np.array([10], dtype=np.int8)
    assert linear.scratch_risk(10, np.ones(10), num_samples=n, noise_std=1.0)[0] == np.inf


def test_guarantee_refuses_impossible_heads():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    B0 = np.array([[0.8], [0.6], [0.0]]) / 0.1**0.5
    with pytest.raises(ValueError, match="Invalid diversity=50"):
        linear.guarantee(tasks, B0, local_steps=2, lr=0.1, diversity=50.0)
    with pytest.raises(ValueError, match="Invalid mean_drift=-1"):
        linear.guarantee(tasks, B0, local_steps=2, lr=0.1, mean_drift=-1.0)


def test_a_round_that_diverges_says_so():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="smaller than 5.0"):
        linear.one_round(tasks, 1e3 * np.ones((3, 1)), np.ones(1), local_steps=20, lr=5.0)
