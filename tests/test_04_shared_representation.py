"""Chapter 4: the model, what identifies its subspace, and how to measure it.

Distances and projections are written out here, by least squares and singular values; what the
library and the chapter say is on the other side of the comparison.
"""

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, lstsq, matrix_rank, norm, svd

import fedlib as fl
from fedlib import linear

many = settings(max_examples=200, deadline=None)
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
features = st.integers(1, 4)
more = st.integers(1, 5)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def missed(B, targets):
    """Part of the targets' columns that no head on B reaches."""
    return targets - B @ lstsq(B, targets, rcond=None)[0]


def dist(B, B_star):
    """The distance by least squares, without a basis of B's columns."""
    return norm(missed(B, B_star), 2)


def of_rank(rng, d, k, rank):
    return orthonormal(rng, d, rank) @ rng.standard_normal((rank, k))


def random_tasks(rng, k, extra, num_clients=6):
    B_star = orthonormal(rng, k + extra, k)
    return linear.LinearTasks(B_star, rng.standard_normal((num_clients, k)) + 0.5)


# --- The population loss ------------------------------------------------------------------------


def enumerated_loss(rows, noise, theta, B, w):
    """Mean loss over all pairs of an input and a noise, equally likely."""
    errors = rows @ (theta - B @ w) + noise[:, None]
    return (errors**2).mean() / 2


@many
@given(seeds, features, more, st.floats(0, 2))
def test_prop_population_loss(seed, k, extra, sigma):
    rng = np.random.default_rng(seed)
    d = k + extra
    turn, theta = orthonormal(rng, d, d), rng.standard_normal(d)
    B, w = rng.standard_normal((d, k)), rng.standard_normal(k)
    rows, noise = np.sqrt(d) * np.vstack([turn, -turn]), sigma * np.array([1.0, -1.0])
    r = B @ w - theta
    loss = enumerated_loss(rows, noise, theta, B, w)
    assert loss == pytest.approx(r @ r / 2 + sigma**2 / 2, rel=1e-12)
    body, head = (torch.tensor(a, requires_grad=True) for a in (B, w))
    (0.5 * (body @ head - torch.tensor(theta)).square().sum()).backward()
    assert abs(body.grad.numpy() - np.outer(r, w)).max() < 1e-12 * (1 + abs(r).max() * norm(w))
    assert abs(head.grad.numpy() - B.T @ r).max() < 1e-12 * (1 + norm(B) * norm(r))


def test_prop_population_loss_needs_inputs_of_identity_covariance():
    theta, B, w = np.array([1.0, 0.0]), np.array([[1.0], [1.0]]), np.ones(1)
    rows = np.sqrt(2) * np.diag([1.0, 2.0])
    loss = enumerated_loss(rows, np.zeros(1), theta, B, w)
    assert abs(loss - 0.5) > 1


def test_prop_population_loss_needs_noise_uncorrelated_with_inputs():
    x, theta = np.array([-1.0, 1.0]), 2.0
    y = theta * x + 0.5 * x  # noise 0.5 x
    loss = ((y - 1.0 * x) ** 2).mean() / 2
    assert abs(loss - ((1 - theta) ** 2 / 2 + 0.5**2 / 2)) > 0.4


# --- Data as good as a population ---------------------------------------------------------------


def engine(tasks, X, noise, tau, lr=0.3, num_rounds=4, cohort_size=None, copies=None):
    """First and last body of the engine on data (``copies[i]`` copies for client i); cohorts."""
    copies = np.ones(tasks.num_clients, int) if copies is None else copies
    model = fl.LinearNet(tasks.d, tasks.k, seed=1).double()
    targets = [np.tile(X @ theta + noise, c) for theta, c in zip(tasks.theta, copies, strict=True)]
    clients = fl.ClientData(
        torch.as_tensor(np.tile(X, (copies.sum(), 1))),
        torch.as_tensor(np.concatenate(targets)),
        len(X) * copies,
    )
    options = dict(cohort_size=cohort_size, batch_size=None, client_lr=lr)
    config = fl.FedAvgConfig(num_rounds=num_rounds, local_steps=tau, **options)
    cohorts = []

    def spy(*args, **options):
        cohort, batches = fl.draw_round(*args, **options)
        cohorts.append(cohort)
        return cohort, batches

    with mock.patch.object(sys.modules["fedlib.fedavg"], "draw_round", spy):
        params = fl.run_fedavg(model, clients, config, seed=0, progress=False).params
    return model.body.weight.detach().numpy().T, params["body.weight"].numpy().T, cohorts


def engine_and_run(tasks, X, noise, tau, lr=0.3, num_rounds=4, copies=None):
    """Bodies after some rounds: the engine's on data, and the recursion's."""
    B0, last, _ = engine(tasks, X, noise, tau, lr, num_rounds, copies=copies)
    options = dict(local_steps=tau, lr=lr, num_rounds=num_rounds)
    return last, linear.run(tasks, B0, np.zeros(tasks.k), **options).B[-1]


def balanced(rng, n, d):
    """Inputs with XᵀX = nI, and noise orthogonal to them."""
    U = orthonormal(rng, n, n)
    return np.sqrt(n) * U[:, :d], U[:, d:].sum(axis=1)


@many
@given(seeds, features, more, st.floats(0, 2))
def test_cor_equivalent_data(seed, k, extra, size):
    rng = np.random.default_rng(seed)
    d = k + extra
    X, noise = balanced(rng, d + 3, d)
    noise *= size
    theta, B, w = rng.standard_normal(d), rng.standard_normal((d, k)), rng.standard_normal(k)
    loss = ((X @ (theta - B @ w) + noise) ** 2).mean() / 2
    expected = norm(B @ w - theta) ** 2 / 2 + noise @ noise / 2 / len(X)
    assert loss == pytest.approx(expected, rel=1e-12)


@few
@given(seeds, features, more, st.integers(1, 4))
def test_cor_equivalent_data_in_the_engine(seed, k, extra, tau):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + extra, k, 6, rng=rng, mean_size=0.5)
    engine, exact = engine_and_run(tasks, *balanced(rng, tasks.d + 3, tasks.d), tau)
    assert abs(engine - exact).max() < 1e-9


@few
@given(seeds, features, more, st.integers(1, 4), st.integers(1, 5))
def test_cor_equivalent_data_with_cohorts(seed, k, extra, tau, size):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + extra, k, 6, rng=rng, mean_size=0.5)
    data = balanced(rng, tasks.d + 3, tasks.d)
    B, last, cohorts = engine(tasks, *data, tau, cohort_size=size)
    assert [len(set(cohort)) for cohort in cohorts] == [size] * 4
    assert len({frozenset(cohort) for cohort in cohorts}) > 1  # not the same in all rounds
    w = np.zeros(k)
    for cohort in cohorts:
        played = linear.one_round(tasks, B, w, local_steps=tau, lr=0.3, clients=cohort)
        B, w = played.B, played.w
    assert abs(last - B).max() < 1e-9


def test_cor_equivalent_data_needs_clients_of_equal_size():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(4, 2, 6, rng=rng, mean_size=0.5)
    data = balanced(rng, 8, 4)
    for copies, same in (([2] * 6, True), ([1, 1, 1, 4, 4, 4], False)):
        last, exact = engine_and_run(tasks, *data, 3, copies=np.array(copies))
        gap = abs(last - exact).max()
        assert gap < 1e-9 if same else gap > 0.01


@pytest.mark.parametrize("what", ["inputs", "noise"])
def test_cor_equivalent_data_needs_balanced(what):
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks.random(4, 2, 6, rng=rng, mean_size=0.5)
    X, noise = balanced(rng, 8, 4)
    if what == "inputs":
        X, noise = X * [1, 2, 1, 1], 0 * noise
    else:
        noise = X[:, 0]
    engine, exact = engine_and_run(tasks, X, noise, 3, lr=0.1)
    assert abs(engine - exact).max() > 0.01


# --- Identifiability ----------------------------------------------------------------------------


@many
@given(seeds, features, more)
def test_prop_identifiable(seed, k, extra):
    rng = np.random.default_rng(seed)
    tasks = random_tasks(rng, k, extra)
    assert matrix_rank(tasks.heads) == k
    R = orthonormal(rng, k, k) * rng.uniform(0.5, 2, k) @ orthonormal(rng, k, k)
    B = tasks.B_star @ R
    heads, *_ = lstsq(B, tasks.theta.T, rcond=None)
    assert abs(B @ heads - tasks.theta.T).max() < 1e-12
    assert abs(R @ heads - tasks.heads.T).max() < 1e-12
    # Any body that misses some of the truth misses some client.
    other = tasks.B_star @ R + 0.1 * rng.standard_normal(B.shape)
    least = svd(tasks.heads, compute_uv=False)[-1]
    assume(dist(other, tasks.B_star) > 1e-3)
    assert norm(missed(other, tasks.theta.T), 2) >= least * dist(other, tasks.B_star) * (1 - 1e-9)


def test_prop_identifiable_needs_heads_that_span():
    rng = np.random.default_rng(0)
    B_star = orthonormal(rng, 7, 3)
    heads = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 3))  # in a plane
    u = svd(heads)[2][-1]
    V, p = svd(u[None])[2][1:].T, svd(B_star)[0][:, -1]
    B = np.column_stack([B_star @ V, p])
    assert matrix_rank(B) == 3
    assert abs(missed(B, (heads @ B_star.T).T)).max() < 1e-12
    assert abs(B.T @ B_star @ u).max() < 1e-12
    assert dist(B, B_star) == pytest.approx(1)


# --- The common objective -----------------------------------------------------------------------


def blind(tasks):
    """A minimiser that misses a direction of the truth: its body and head."""
    V, p = svd(tasks.mean_head[None])[2].T, svd(tasks.B_star)[0][:, -1]
    B = np.column_stack([tasks.B_star @ V[:, :-1], p])
    return B, lstsq(B, tasks.B_star @ tasks.mean_head, rcond=None)[0], tasks.B_star @ V[:, -1]


def objective(tasks, B, w):
    return ((B @ w - tasks.theta) ** 2).sum(axis=1).mean() / 2


@many
@given(seeds, st.integers(2, 4), more)
def test_prop_common_objective(seed, k, extra):
    rng = np.random.default_rng(seed)
    tasks = random_tasks(rng, k, extra)
    spread = ((tasks.heads - tasks.heads.mean(axis=0)) ** 2).sum(axis=1).mean() / 2
    B, w = rng.standard_normal(tasks.B_star.shape), rng.standard_normal(k)
    v = tasks.B_star @ tasks.heads.mean(axis=0)
    formula = norm(B @ w - v) ** 2 / 2 + spread
    assert objective(tasks, B, w) == pytest.approx(formula, rel=1e-12)
    B, w, direction = blind(tasks)
    assert objective(tasks, B, w) == pytest.approx(spread, rel=1e-12)
    assert matrix_rank(B) == k
    assert abs(B.T @ direction).max() < 1e-12
    assert dist(B, tasks.B_star) == pytest.approx(1)


def test_prop_common_objective_needs_two_features():
    tasks = random_tasks(np.random.default_rng(0), 1, 4)
    spread = tasks.head_covariance.trace() / 2
    B, w, _ = blind(tasks)  # for k = 1, the only body orthogonal to the truth that it can build
    assert objective(tasks, B, w) > spread + 0.01
    assert objective(tasks, 2 * tasks.B_star, tasks.mean_head / 2) == pytest.approx(spread)


# --- The distance -------------------------------------------------------------------------------


@many
@given(seeds, features, more, st.data())
def test_prop_subspace_distance(seed, k, extra, data):
    rng = np.random.default_rng(seed)
    d, rank = k + extra, data.draw(st.integers(1, k))
    B, B_star = of_rank(rng, d, k, rank), orthonormal(rng, d, k)
    distance = linear.subspace_distance(B, B_star)
    assert 0 <= distance <= 1
    assert distance == pytest.approx(dist(B, B_star), abs=1e-9)
    heads = rng.standard_normal((k, 50))
    errors = norm(missed(B, B_star @ heads / norm(heads, axis=0)), axis=0)
    assert errors.max() <= distance + 1e-12
    cosines = svd(svd(B)[0][:, :rank].T @ B_star, compute_uv=False)
    least = cosines[-1] if rank == k else 0.0
    assert distance == pytest.approx(np.sqrt(max(0, 1 - least**2)), abs=1e-7)
    assert linear.subspace_distance(B_star @ rng.standard_normal((k, k)), B_star) < 1e-9
    R = orthonormal(rng, k, k) * rng.uniform(0.5, 2, k) @ orthonormal(rng, k, k)
    turn, U = orthonormal(rng, d, d), orthonormal(rng, k, k)
    assert linear.subspace_distance(B @ R, B_star) == pytest.approx(distance, abs=1e-9)
    assert linear.subspace_distance(turn @ B, turn @ B_star @ U) == pytest.approx(
        distance, abs=1e-9
    )


def test_prop_subspace_distance_needs_an_invertible_change_of_basis():
    B_star = np.eye(4)[:, :2]
    assert linear.subspace_distance(B_star, B_star) == 0
    assert linear.subspace_distance(B_star @ np.ones((2, 2)), B_star) == 1


def test_prop_subspace_distance_needs_a_truth_with_orthonormal_columns():
    with pytest.raises(ValueError, match="not orthonormal"):
        linear.subspace_distance(np.eye(3)[:, :1], 2 * np.eye(3)[:, 1:2])
    assert dist(np.eye(3)[:, :1], 2 * np.eye(3)[:, 1:2]) > 1


@many
@given(seeds, features, more, st.floats(0.01, 3))
def test_prop_distance_two_ways(seed, k, extra, size):
    rng = np.random.default_rng(seed)
    B_star = orthonormal(rng, k + extra, k)
    B = B_star @ orthonormal(rng, k, k) + size * rng.standard_normal(B_star.shape)
    outside, Q = svd(B_star)[0][:, k:], np.linalg.qr(B)[0]
    distance, least = dist(B, B_star), svd(B, compute_uv=False)[-1]
    assert distance == pytest.approx(norm(outside.T @ Q, 2), abs=1e-9)
    assert distance <= norm(outside.T @ B, 2) / least * (1 + 1e-9)
    assert dist(size * Q, B_star) == pytest.approx(norm(outside.T @ (size * Q), 2) / size)


def test_prop_distance_two_ways_needs_full_rank():
    B_star = np.eye(4)[:, :2]
    B = np.repeat(B_star[:, :1], 2, axis=1)
    assert norm(svd(B_star)[0][:, 2:].T @ B, 2) == 0
    assert linear.subspace_distance(B, B_star) == 1


# --- Diversity ----------------------------------------------------------------------------------


@many
@given(seeds, features, st.integers(1, 12))
def test_prop_diversity(seed, k, num_clients):
    rng = np.random.default_rng(seed)
    heads = rng.standard_normal((num_clients, k)) + rng.standard_normal(k)
    heads /= norm(heads, axis=1).max()
    tasks = linear.LinearTasks(np.eye(k + 1)[:, :k], heads)
    mean = heads.mean(axis=0)
    trace = ((heads - mean) ** 2).sum(axis=1).mean()
    assert k * tasks.diversity <= trace + 1e-12
    assert trace <= 1 - mean @ mean + 1e-12
    assert (tasks.diversity > 1e-13) == (matrix_rank(heads - heads[0], tol=1e-6) == k)
    if num_clients <= k:
        assert tasks.diversity < 1e-12
    second = heads.T @ heads / num_clients
    assert abs(second - tasks.head_covariance - np.outer(mean, mean)).max() < 1e-12
    assert (eigvalsh(second)[0] > 1e-13) == (matrix_rank(heads, tol=1e-6) == k)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_prop_diversity_bound_is_attained(k):
    heads = np.vstack([np.eye(k), -np.eye(k)])
    assert linear.LinearTasks(np.eye(k + 1)[:, :k], heads).diversity == pytest.approx(1 / k)


def test_prop_diversity_needs_heads_of_norm_one():
    heads = 3 * np.vstack([np.eye(2), -np.eye(2)])
    assert 2 * linear.LinearTasks(np.eye(3)[:, :2], heads).diversity > 1


def test_prop_diversity_needs_heads_outside_a_hyperplane():
    tasks = linear.LinearTasks(np.eye(4)[:, :2], np.eye(2))
    assert tasks.diversity == pytest.approx(0, abs=1e-15)
    assert eigvalsh(tasks.second_moment)[0] == pytest.approx(0.5)  # yet they span
