"""Chapter 2: what local steps do to one shared optimum, on random quadratics.

Everything is measured on the recursion itself, step by step; the chapter's closed forms are on
the other side of the comparison. Each statement also has a negative control: an instance just
outside its assumptions, on which its conclusion fails.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, norm, solve

import fedlib as fl

many = settings(max_examples=200, deadline=None)
unit = st.floats(0.01, 0.99)
local_steps = st.integers(1, 12)


class Clients(NamedTuple):
    A: np.ndarray  # curvatures, shape (clients, d, d)
    c: np.ndarray  # own optima, shape (clients, d)
    p: np.ndarray  # weights, shape (clients,)
    mu: float
    L: float

    @property
    def optimum(self):
        """The minimiser of the mean loss, from its normal equations."""
        return solve(mean(self, self.A), np.einsum("i,ijk,ik->j", self.p, self.A, self.c))

    @property
    def gradients(self):
        """The clients' gradients at that minimiser."""
        return np.einsum("ijk,ik->ij", self.A, self.optimum - self.c)

    @property
    def disagreement(self):
        return self.p @ norm(self.gradients, axis=1)


def mean(clients, matrices):
    return np.einsum("i,ijk->jk", clients.p, matrices)


def on_line(a, c, p=(0.5, 0.5)):
    """Clients in one dimension."""
    a = np.array(a, dtype=float)
    c = np.array(c, dtype=float)
    return Clients(a[:, None, None], c[:, None], np.array(p), a.min(), a.max())


@st.composite
def federations(draw, max_kappa=100.0):
    """One to five clients in one to four dimensions, with known bounds on the curvature."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num, d = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    L = draw(st.floats(0.1, 10.0))
    mu = L / draw(st.floats(1.0, max_kappa))
    A = []
    for _ in range(num):
        Q, _ = np.linalg.qr(rng.standard_normal((d, d)))
        inside, extreme = rng.uniform(mu, L, d), rng.choice([mu, L], d)
        A.append(Q * np.where(rng.random(d) < 0.5, inside, extreme) @ Q.T)
    c = draw(st.floats(0.1, 10.0)) * rng.standard_normal((num, d))
    p = rng.dirichlet(np.full(num, 0.5)) + 1e-3
    return Clients(np.array(A), c, p / p.sum(), mu, L)


def play_round(clients, theta, alpha, tau):
    """One round as the algorithm says: start together, take gradient steps, average."""
    local = np.repeat(theta[None], len(clients.p), axis=0)
    for _ in range(tau):
        local = local - alpha * np.einsum("ijk,ik->ij", clients.A, local - clients.c)
    return clients.p @ local


def play(clients, theta, alpha, tau, num_rounds):
    path = [theta]
    for _ in range(num_rounds):
        path.append(play_round(clients, path[-1], alpha, tau))
    return np.array(path)


def contraction(clients, alpha, tau):
    """The matrix of the round, read off from what it does to the unit vectors."""
    d = clients.c.shape[1]
    origin = play_round(clients, np.zeros(d), alpha, tau)
    return np.array([play_round(clients, e, alpha, tau) - origin for e in np.eye(d)]).T


def rest(clients, alpha, tau):
    """The point that a round leaves in place."""
    d = clients.c.shape[1]
    origin = play_round(clients, np.zeros(d), alpha, tau)
    return solve(np.eye(d) - contraction(clients, alpha, tau), origin)


def drift(clients, alpha, tau):
    return norm(rest(clients, alpha, tau) - clients.optimum)


def size(clients):
    """The scale against which rounding errors are small."""
    return 1 + abs(clients.c).max()


def start(clients, seed=0):
    return size(clients) * np.random.default_rng(seed).standard_normal(clients.c.shape[1])


# --- A round is a gradient step on the surrogate ------------------------------------------------


def least_squares(seed, num, d):
    """A ragged federation, its quadratics, and a linear model for the engine."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(d + 1, d + 12, num)
    x, y = rng.standard_normal((sizes.sum(), d)), rng.standard_normal(sizes.sum())
    data = fl.ClientData(torch.as_tensor(x), torch.as_tensor(y), sizes)
    A = np.array([(X.T @ X / len(X)).numpy() for X, _ in data])
    c = np.array([np.linalg.lstsq(X.numpy(), t.numpy(), rcond=None)[0] for X, t in data])
    bounds = eigvalsh(A)
    head = torch.nn.Sequential(torch.nn.Linear(d, 1, bias=False), torch.nn.Flatten(0))
    model = fl.BodyHead(torch.nn.Identity(), head).double()
    return data, Clients(A, c, sizes / sizes.sum(), bounds.min(), bounds.max()), model


def engine_round(data, model, theta, alpha, tau, **options):
    config = fl.FedAvgConfig(
        num_rounds=1,
        local_steps=tau,
        client_lr=alpha,
        **({"cohort_size": None, "batch_size": None} | options),
    )
    at = {"head.0.weight": torch.as_tensor(theta[None])}
    new, _ = fl.run_round(model, at, data, config, rng=np.random.default_rng(0))
    return new["head.0.weight"][0].numpy()


def surrogate_step(clients, theta, alpha, tau):
    identity = np.eye(len(theta))
    W = [identity - np.linalg.matrix_power(identity - alpha * a, tau) for a in clients.A]
    return theta - np.einsum("i,ijk,ik->j", clients.p, W, theta - clients.c)


@many
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), local_steps, unit)
def test_prop_drift_round(seed, num, d, tau, fraction):
    data, clients, model = least_squares(seed, num, d)
    alpha, theta = 4 * fraction / clients.L, start(clients, seed)  # any alpha, also beyond 2 / L
    found = engine_round(data, model, theta, alpha, tau)
    assert found == pytest.approx(surrogate_step(clients, theta, alpha, tau), abs=1e-9)
    assert found == pytest.approx(play_round(clients, theta, alpha, tau), abs=1e-9)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"cohort_size": 2}])
def test_prop_drift_round_needs_full_batches_and_all_clients(options):
    data, clients, model = least_squares(0, 4, 2)
    theta = start(clients)
    found = engine_round(data, model, theta, 0.1, 5, **options)
    assert norm(found - surrogate_step(clients, theta, 0.1, 5)) > 1e-3


# --- Fixed point and rate -----------------------------------------------------------------------


@many
@given(federations(), local_steps, unit)
def test_thm_drift_fixed_point(clients, tau, fraction):
    alpha = 2 * fraction / clients.L
    rho = max(abs(1 - alpha * clients.mu), abs(1 - alpha * clients.L))
    q = norm(contraction(clients, alpha, tau), 2)
    assert q <= rho**tau + 1e-12 * size(clients)  # q is read off rounds of that size
    assert rho < 1
    W = np.eye(clients.c.shape[1]) - [
        np.linalg.matrix_power(np.eye(len(a)) - alpha * a, tau) for a in clients.A
    ]
    limit = solve(mean(clients, W), np.einsum("i,ijk,ik->j", clients.p, W, clients.c))
    still = play_round(clients, limit, alpha, tau)
    assert norm(still - limit) <= 1e-9 * size(clients)
    distances = norm(play(clients, start(clients), alpha, tau, 12) - limit, axis=1)
    allowed = q ** np.arange(13) * distances[0]
    assert (distances <= allowed + 1e-9 * size(clients)).all()


@pytest.mark.parametrize("tau", [1, 2, 5])
def test_thm_drift_fixed_point_needs_short_steps(tau):
    clients = on_line([1.0], [0.0], [1.0])
    path = play(clients, np.array([1.0]), 2.1, tau, 200)
    assert abs(path[-1, 0]) > 1e6
    path = play(clients, np.array([1.0]), 1.9, tau, 200)
    assert abs(path[-1, 0]) < 1e-6


# --- No drift -----------------------------------------------------------------------------------


@many
@given(federations(), local_steps, unit, st.sampled_from(["one step", "curvatures", "optima"]))
def test_cor_no_drift(clients, tau, fraction, equal):
    alpha = 2 * fraction / clients.L
    if equal == "one step":
        tau = 1
    elif equal == "curvatures":
        clients = clients._replace(A=np.repeat(clients.A[:1], len(clients.p), axis=0))
    else:
        clients = clients._replace(c=np.repeat(clients.c[:1], len(clients.p), axis=0))
    assert drift(clients, alpha, tau) <= 1e-8 * size(clients)


def test_cor_no_drift_needs_one_of_the_three():
    for c, a, tau in [((0, 1), (1, 2), 1), ((0, 1), (1, 1), 2), ((1, 1), (1, 2), 2)]:
        assert drift(on_line(a, c), 0.25, tau) < 1e-12
    assert drift(on_line((1, 2), (0, 1)), 0.25, 2) > 0.01


# --- Two clients on the line --------------------------------------------------------------------


@many
@given(
    st.floats(0.05, 0.95),
    st.floats(0.05, 1.0),
    st.floats(0.05, 0.95),
    st.floats(-5, 5),
    st.floats(-5, 5),
)
def test_prop_drift_two_clients(ratio, step, p, c1, c2):
    assume(abs(c1 - c2) > 0.1)
    clients = on_line([ratio, 1.0], [c1, c2], [p, 1 - p])  # in units of the steep client
    places = [rest(clients, step, tau)[0] for tau in (1, 2, 3, 4, 8, 600)]
    shares = (np.array(places) - c2) / (c1 - c2)
    assert shares[0] == pytest.approx(p * ratio / (p * ratio + 1 - p))
    gaps = np.diff(shares)
    assert gaps[0] > 0
    assert (gaps > -1e-12).all()  # later ones may be smaller than rounding
    assert (gaps[:4] > 0).all() or shares[4] > p - 1e-3
    assert shares[-1] <= p + 1e-9
    if step * ratio > 0.03:
        assert shares[-1] == pytest.approx(p, abs=1e-6)
    assert np.sign(places[1] - clients.optimum[0]) == np.sign(c1 - c2)


def test_prop_drift_two_clients_needs_steps_within_one_over_the_curvature():
    clients = on_line([1.2, 1.8], [0.0, 1.0])
    assert drift(clients, 1.0, 3) < 1e-12
    assert drift(clients, 0.5, 3) > 0.01
    # Nor need the fixed point stay on the near side of the average.
    assert rest(on_line([0.5, 1.9], [0.0, 1.0]), 1.0, 2)[0] < 0.5 - 0.1


def test_prop_drift_two_clients_needs_different_curvatures_and_optima():
    assert drift(on_line([1.0, 1.0], [0.0, 1.0]), 0.5, 5) < 1e-12
    assert drift(on_line([0.5, 1.0], [1.0, 1.0]), 0.5, 5) < 1e-12


# --- Size of the drift --------------------------------------------------------------------------


def first_order(clients, alpha, tau):
    gradients = clients.gradients
    push = np.einsum("i,ijk,ik->j", clients.p, clients.A, gradients)
    return alpha * (tau - 1) / 2 * solve(mean(clients, clients.A), push)


def remainder(clients, alpha, tau):
    exact = rest(clients, alpha, tau) - clients.optimum
    return norm(exact - first_order(clients, alpha, tau))


@many
@given(federations(), local_steps, unit)
def test_prop_drift_size(clients, tau, fraction):
    u = fraction if tau > 1 else 0.0
    alpha = fraction / max(tau - 1, 1) / clients.L
    unit_of_drift = clients.disagreement / clients.mu
    slack = 1e-8 * size(clients) * clients.L / clients.mu
    assert drift(clients, alpha, tau) <= u * unit_of_drift + slack
    bound = 2 / 3 * clients.L / clients.mu * u**2 * unit_of_drift
    assert remainder(clients, alpha, tau) <= bound + slack


def test_prop_drift_size_has_the_right_order_and_sign():
    clients = on_line([0.5, 1.0, 2.0], [0.0, 1.0, -2.0], [0.2, 0.3, 0.5])
    steps = 0.1 / 2.0 ** np.arange(5)
    found = [remainder(clients, alpha, 4) for alpha in steps]
    assert np.polyfit(np.log(steps), np.log(found), 1)[0] == pytest.approx(2, abs=0.1)
    wrong = rest(clients, 1e-4, 4) - clients.optimum + first_order(clients, 1e-4, 4)
    assert norm(wrong) > 1.9 * drift(clients, 1e-4, 4)


def test_prop_drift_size_is_sharp_up_to_a_factor_of_five():
    clients = on_line([1.0, 1000.0], [0.0, 1.0], [1 - 1e-5, 1e-5])  # one rare, steep client
    alpha, tau = 1e-5, 11
    u = alpha * 1000.0 * (tau - 1)
    assert 5 * drift(clients, alpha, tau) > u * clients.disagreement / clients.mu


def test_prop_drift_size_needs_short_steps_and_rounds():
    # alpha L = u = 1.99: still below 2, so that the fixed point of Theorem 2.1 exists.
    clients = on_line([1.0, 1.99], [0.0, 1.0], [0.01, 0.99])
    u, unit_of_drift = 1.99, clients.disagreement / clients.mu
    assert drift(clients, 1.0, 2) > 3 * u * unit_of_drift
    assert remainder(clients, 1.0, 2) > 2 * 2 / 3 * 1.99 * u**2 * unit_of_drift


# --- Many local steps (Exercise) ------------------------------------------------------------------


@many
@given(federations(), st.integers(1, 60), unit)
def test_many_local_steps(clients, tau, fraction):
    average = clients.p @ clients.c
    spread = clients.p @ norm(clients.c - average, axis=1)
    slack = 1e-8 * size(clients)
    alpha = 2 * fraction / clients.L
    rho = max(abs(1 - alpha * clients.mu), abs(1 - alpha * clients.L))
    distance = norm(rest(clients, alpha, tau) - average)
    assert distance <= rho**tau / (1 - rho**tau) * spread + slack
    place = rest(clients, fraction / clients.L, tau)
    assert norm(place - average) <= clients.L / clients.mu * spread + slack
    if len(average) == 1:
        assert clients.c.min() - slack <= place[0] <= clients.c.max() + slack


def test_many_local_steps_is_sharp():
    clients = on_line([0.5, 1.5], [0.0, 1.0])  # with a step of 1, rho = 1/2
    distance = abs(rest(clients, 1.0, 11)[0] - 0.5)
    assert 1.001 * distance > 0.5**11 / (1 - 0.5**11) * 0.5


def test_many_local_steps_needs_steps_below_two_over_the_curvature():
    clients = on_line([1.0, 2.5], [0.0, 1.0])
    assert abs(rest(clients, 1.0, 40)[0] - 0.5) > 0.4  # the diverging client takes all
    assert abs(rest(clients, 0.7, 40)[0] - 0.5) < 1e-4


def test_many_local_steps_needs_steps_within_one_over_the_curvature_for_its_second_claim():
    clients = on_line([1.0, 1.99], [1.0, 0.0], [0.05, 0.95])
    average, spread = 0.05, 2 * 0.05 * 0.95
    assert abs(rest(clients, 1.0, 2)[0] - average) > 3 * 1.99 * spread


# --- Speed against accuracy (Exercise) ----------------------------------------------------------


@many
@given(federations(), local_steps, unit, st.integers(0, 30))
def test_speed_against_accuracy(clients, tau, fraction, num_rounds):
    u = fraction if tau > 1 else 0.0
    alpha = fraction / max(tau - 1, 1) / clients.L
    path = play(clients, start(clients), alpha, tau, num_rounds)
    first, last = norm(path[[0, -1]] - clients.optimum, axis=1)
    floor = 2 * u * clients.disagreement / clients.mu
    slack = 1e-8 * size(clients) * clients.L / clients.mu
    assert last <= (1 - alpha * clients.mu) ** (tau * num_rounds) * first + floor + slack


def test_speed_against_accuracy_needs_steps_within_one_over_the_curvature():
    # One client, so no drift: with long steps the steep direction is the slow one.
    clients = Clients(np.diag([0.5, 1.0])[None], np.zeros((1, 2)), np.ones(1), 0.5, 1.0)
    path = play(clients, np.ones(2), 1.9, 1, 5)
    assert norm(path[-1]) > (1 - 1.9 * 0.5) ** 5 * norm(path[0]) + 0.5


def test_speed_against_accuracy_needs_its_second_term():
    clients = on_line([0.5, 2.0], [0.0, 1.0])
    path = play(clients, np.array([3.0]), 0.1, 5, 200)
    assert abs(path[-1, 0] - clients.optimum[0]) > 0.05 > (1 - 0.1 * 0.5) ** 1000 * 3


# --- One long step ------------------------------------------------------------------------------


@many
@given(federations(), local_steps, unit)
def test_prop_one_long_step(clients, tau, fraction):
    alpha = fraction / tau / clients.L
    q = norm(contraction(clients, alpha, tau), 2)
    Q = norm(contraction(clients, tau * alpha, 1), 2)
    assert q + 1e-12 * size(clients) >= Q
    path = play(clients, start(clients), tau * alpha, 1, 12)
    distances = norm(path - clients.optimum, axis=1)
    assert (distances <= Q ** np.arange(13) * distances[0] + 1e-8 * size(clients)).all()


def test_prop_one_long_step_needs_a_step_within_one_over_the_curvature():
    clients = on_line([0.2, 1.0], [0.0, 1.0])
    assert norm(contraction(clients, 0.5, 10), 2) < 1 < norm(contraction(clients, 5.0, 1), 2)
