"""The linear theory's statements, each on at least 200 random instances inside its assumptions.

Identities are checked to 1e-12 and inequalities as ratios, on a recursion written out here; each
statement also has a negative control, an instance outside the assumptions where it fails. Run
with FEDLIB_MARGINS=1 and -s to see how close to its bound each inequality came.
"""

import os
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, norm, svd
from scipy.optimize import root

from fedlib import linear

many = settings(max_examples=200, deadline=None)
some = settings(max_examples=20, deadline=None)  # for checks of long runs, beside the 200
seeds = st.integers(0, 2**32 - 1)
OMEGA = 21 / 20
WORST = {}


def within(name, left, right, slack=1e-13):
    """Assert an inequality up to rounding, and remember how close it came."""
    ratio = left / right if right > 1e-10 else 0.0  # smaller ones say more about rounding
    WORST[name] = max(WORST.get(name, 0.0), ratio)
    assert left <= right * (1 + 1e-9) + slack, f"{name}: {left} > {right}"


def teardown_module():
    if os.environ.get("FEDLIB_MARGINS"):
        print()
        for name, ratio in WORST.items():
            print(f"{name:50s} worst left/right {ratio:.4f}")


def spectral(A):
    return norm(A, 2)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def complement(B_star):
    return svd(B_star, full_matrices=True)[0][:, B_star.shape[1] :]


def cov(x):
    y = x - x.mean(axis=0)
    return y.T @ y / len(x)


def unit_heads(rng, num_clients, k, mean=0.0):
    """Gaussian heads, or (now and then) ± the unit vectors, moved; the longest has norm 1."""
    heads = rng.standard_normal((num_clients, k))
    if rng.random() < 0.3:
        heads = np.vstack([np.eye(k), -np.eye(k)])
    heads[:, 0] += mean
    return heads / norm(heads, axis=1).max()


class Locals(NamedTuple):
    B: list  # over steps 0..τ, each (clients, d, k)
    w: list  # over steps 0..τ, each (clients, k)
    r: list  # over steps 0..τ-1, each (clients, d)

    @property
    def server(self):
        return self.B[-1].mean(axis=0), self.w[-1].mean(axis=0)

    @property
    def u(self):
        return [after - before for before, after in zip(self.w, self.w[1:], strict=False)]


def local(B, w, theta, tau, eta, head_lr=1.0):
    """τ steps of w' = w - head_lr Bᵀr, B' = B - eta r wᵀ, for clients theta of shape (M, d)."""
    num = len(theta)
    path = Locals([np.repeat(B[None], num, 0)], [np.repeat(w[None], num, 0)], [])
    for _ in range(tau):
        b, v = path.B[-1], path.w[-1]
        r = np.einsum("mdk,mk->md", b, v) - theta
        path.r.append(r)
        path.B.append(b - eta * r[:, :, None] * v[:, None, :])
        path.w.append(v - head_lr * np.einsum("mdk,md->mk", b, r))
    return path


def prior(heads, eta):
    """mean_i prod_s (I - eta w w^T) over steps, the index increasing to the right."""
    _, num, k = np.shape(heads)
    products = np.repeat(np.eye(k)[None], num, axis=0)
    for v in heads:
        products = products @ (np.eye(k) - eta * v[:, :, None] * v[:, None, :])
    return products.mean(axis=0)


def gram_defect(B):
    return np.eye(B.shape[1]) - B.T @ B


def with_defect(rng, Q, delta):
    """A body with the columns of Q, and a random Delta of norm delta."""
    k = Q.shape[1]
    S = rng.standard_normal((k, k))
    S = (S + S.T) * delta / max(spectral(S + S.T), 1e-300)
    if rng.random() < 0.4:
        S = np.eye(k) * delta * rng.choice([-1, 1])
    values, vectors = np.linalg.eigh(np.eye(k) - S)
    return Q @ (vectors * np.sqrt(values)) @ vectors.T


def at(rng, B_star, E0):
    """Orthonormal columns whose largest principal sine is √(1 - E0)."""
    tasks = linear.LinearTasks(B_star, np.ones((1, B_star.shape[1])))
    return linear.matched_start(tasks, lr=1.0, distance=float(np.sqrt(1 - E0)), rng=rng)


def outside_size(B, B_star):
    return spectral(B - B_star @ (B_star.T @ B))


# --- Exact identities ---------------------------------------------------------------------------


class Instance(NamedTuple):
    B_star: np.ndarray
    heads: np.ndarray
    B: np.ndarray
    w: np.ndarray
    tau: int
    lr: float


@st.composite
def instances(draw):
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, 4))
    d = k + draw(st.integers(1, 5))
    heads = rng.standard_normal((draw(st.integers(1, 5)), k))
    heads *= draw(st.floats(0.3, 2)) / norm(heads, axis=1).max()
    lr = draw(st.floats(0.01, 0.3))
    B = rng.standard_normal((d, k))
    B *= draw(st.floats(0.3, 1.2)) / spectral(B) / np.sqrt(lr)
    w = rng.standard_normal(k)
    w *= draw(st.floats(0, 1.5)) / norm(w)
    return Instance(orthonormal(rng, d, k), heads, B, w, draw(st.integers(1, 6)), lr)


def play(instance):
    tasks = linear.LinearTasks(instance.B_star, instance.heads)
    options = dict(local_steps=instance.tau, lr=instance.lr)
    return tasks, linear.one_round(tasks, instance.B, instance.w, **options)


@many
@given(instances())
def test_prop_rescaling(instance):
    tasks, played = play(instance)
    lr, length = instance.lr, tasks.L_max
    theta = tasks.normalised().theta
    eta = lr**2 * length**2
    found = local(
        np.sqrt(lr) * instance.B, instance.w / np.sqrt(lr) / length, theta, instance.tau, eta
    )
    for s in range(instance.tau + 1):
        assert abs(found.B[s] - np.sqrt(lr) * played.bodies[s]).max() <= 1e-12
        heads = played.heads[s] / np.sqrt(lr) / length
        assert abs(found.w[s] - heads).max() <= 1e-12 * max(1, abs(heads).max())


def test_prop_rescaling_needs_the_same_step_for_both_parts():
    rng = np.random.default_rng(0)
    theta, B, w = rng.standard_normal((1, 4)), orthonormal(rng, 4, 2), rng.standard_normal(2)
    uneven = local(B, w, theta, 3, 0.1, head_lr=0.2)
    scaled = local(np.sqrt(0.1) * B, w / np.sqrt(0.1), theta, 3, 0.01)
    assert abs(np.sqrt(0.1) * uneven.B[-1] - scaled.B[-1]).max() > 1e-2


@many
@given(instances())
def test_prop_prior_signal(instance):
    _, played = play(instance)
    B_star, B, lr = instance.B_star, instance.B, instance.lr
    P = prior(played.heads[:-1], lr)
    assert abs(P - played.P).max() <= 1e-12
    assert abs(played.B - B @ P - B_star @ played.S).max() <= 1e-12 * (1 + abs(B).max())
    out = complement(B_star)
    assert abs(out.T @ played.B - out.T @ B @ P).max() <= 1e-12 * (1 + abs(B).max())
    sigma = svd(played.B, compute_uv=False)[-1]
    if sigma > 1e-3:
        distance = linear.subspace_distance(played.B, B_star)
        within("A2 distance <= D/sigma_min", distance, outside_size(played.B, B_star) / sigma)
    if lr * instance.w @ instance.w <= 2:
        within(
            "A2' the first step only shrinks", spectral(P), spectral(prior(played.heads[1:-1], lr))
        )


def prior_signal_error(instance, heads, B_new):
    P = prior(heads, instance.lr)
    out = complement(instance.B_star)
    return abs(out.T @ B_new - out.T @ instance.B @ P).max()


def an_instance(w=(1.0, -0.5), lr=0.2, tau=4, seed=0):
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((5, 2)) / np.sqrt(lr) / 2
    heads = rng.standard_normal((3, 2)) / 2
    return Instance(orthonormal(rng, 5, 2), heads, B, np.array(w), tau, lr)


def test_prop_prior_signal_needs_the_order_of_its_factors():
    instance = an_instance()
    _, played = play(instance)
    heads = list(played.heads[:-1])
    assert prior_signal_error(instance, heads, played.B) <= 1e-12
    assert prior_signal_error(instance, heads[::-1], played.B) > 1e-4


def test_prop_prior_signal_needs_simultaneous_steps():
    # The body steps after the head has: then it is the new head that enters P.
    instance = an_instance()
    theta = linear.LinearTasks(instance.B_star, instance.heads).theta
    heads, ends = [], []
    for t in theta:
        b, v, path = instance.B, instance.w, []
        for _ in range(instance.tau):
            path.append(v)
            v = v - instance.lr * b.T @ (b @ v - t)
            b = b - instance.lr * np.outer(b @ v - t, v)
        heads.append(path)
        ends.append(b)
    assert prior_signal_error(instance, np.swapaxes(heads, 0, 1), np.mean(ends, axis=0)) > 1e-2


def test_prop_prior_signal_needs_a_short_common_head_for_its_last_claim():
    instance = an_instance(w=(6.0, 0.0), lr=0.1, tau=2)  # lr |w|² = 3.6 > 2
    _, played = play(instance)
    assert spectral(played.P) > 1.01 * spectral(prior(played.heads[1:-1], instance.lr))


def balancedness(instance):
    """Both sides of the two identities, in normalised variables."""
    tasks = linear.LinearTasks(instance.B_star, instance.heads)
    lr, length = instance.lr, tasks.L_max
    eta = lr**2 * length**2
    B, w = np.sqrt(lr) * instance.B, instance.w / np.sqrt(lr) / length
    return B, w, eta, local(B, w, tasks.normalised().theta, instance.tau, eta)


def gamma(B, w, eta):
    return gram_defect(B) + eta * np.outer(w, w)


def local_error(path, eta):
    """Error of the identity along the local steps."""
    worst = 0.0
    for s, u in enumerate(path.u):
        for i, r in enumerate(path.r[s]):
            b, v = path.B[s][i], path.w[s][i]
            right = gamma(b, v, eta) + eta * np.outer(u[i], u[i]) - eta**2 * r @ r * np.outer(v, v)
            worst = max(worst, abs(gamma(path.B[s + 1][i], path.w[s + 1][i], eta) - right).max())
    return worst


def moments(path, eta):
    """V_B, N and the mean of the u uᵀ of a round."""
    b = path.B[-1] - path.server[0]
    spread = np.einsum("mdk,mdl->kl", b, b) / len(b)
    noise = sum(
        eta**2 * np.einsum("m,mk,ml->kl", (r**2).sum(axis=1), v, v) / len(v)
        for r, v in zip(path.r, path.w, strict=False)
    )
    return spread, noise, sum(np.einsum("mk,ml->kl", u, u) / len(u) for u in path.u)


@many
@given(instances())
def test_prop_balancedness(instance):
    B, w, eta, path = balancedness(instance)
    size = 1 + np.max(np.abs(path.w)) ** 2
    assert local_error(path, eta) <= 1e-12 * size
    B1, w1 = path.server
    V, N, U = moments(path, eta)
    Delta = np.mean([gram_defect(b) for b in path.B[-1]], axis=0)
    assert abs(gram_defect(B1) - Delta - V).max() <= 1e-12 * size
    right = gamma(B, w, eta) + eta * (U - cov(path.w[-1])) + V - N
    assert abs(gamma(B1, w1, eta) - right).max() <= 1e-12 * size


def test_prop_balancedness_needs_its_second_order_term():
    instance = an_instance(lr=0.3)
    B, w, eta, path = balancedness(instance)
    flow = gamma(B, w, eta) - gamma(*path.server, eta)  # zero for gradient flow
    assert abs(flow).max() > 1e-3


def test_prop_balancedness_needs_the_same_step_for_both_parts():
    rng = np.random.default_rng(0)
    theta, B = rng.standard_normal((2, 4)), orthonormal(rng, 4, 2)
    w = rng.standard_normal(2)
    assert local_error(local(B, w, theta, 3, 0.1), 0.1) <= 1e-12
    assert local_error(local(B, w, theta, 3, 0.1, head_lr=0.5), 0.1) > 1e-2


@many
@given(instances())
def test_prop_residuals(instance):
    _, _, eta, path = balancedness(instance)
    size = 1 + np.max(np.abs(path.w)) ** 3
    for s in range(instance.tau - 1):
        for i in range(len(path.w[0])):
            b, v, r, u = path.B[s][i], path.w[s][i], path.r[s][i], path.u[s][i]
            c, r1, u1 = v @ path.w[s + 1][i], path.r[s + 1][i], path.u[s + 1][i]
            assert abs(r1 - (r - b @ (b.T @ r) - eta * c * r)).max() <= 1e-12 * size
            right = gram_defect(b) @ u - eta * c * u + eta * r @ r1 * v
            assert abs(u1 - right).max() <= 1e-12 * size


def test_prop_residuals_needs_consecutive_heads():
    B, _, eta, path = balancedness(an_instance())
    v, r, r1 = path.w[0][0], path.r[0][0], path.r[1][0]
    assert abs(r1 - (r - B @ (B.T @ r) - eta * v @ path.w[1][0] * r)).max() <= 1e-12
    assert abs(r1 - (r - B @ (B.T @ r) - eta * v @ v * r)).max() > 1e-3


# --- Lemma: local steps -------------------------------------------------------------------------


def steps_and_eta(draw, eta_max=1 / 480, eps_max=1 / 20):
    tau = draw(st.sampled_from([2, 2, 3, 3, 5, 10, 40, 100]))
    return tau, min(eta_max, eps_max / (tau - 1)) * draw(st.sampled_from([1.0, 0.5, 0.01]))


@st.composite
def local_states(draw, delta=1 / 40):
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, 4))
    d = k + draw(st.integers(1, 5))
    Q = orthonormal(rng, d, k)
    B = with_defect(rng, Q, draw(st.sampled_from([0.0, 1e-3, delta])))
    inside, outside = Q @ rng.standard_normal(k), rng.standard_normal(d)
    outside -= Q @ (Q.T @ outside)
    p = draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]))
    theta = np.sqrt(1 - p * p) * inside / norm(inside) + p * outside / norm(outside)
    w = rng.standard_normal(k)
    toward = Q.T @ theta * draw(st.sampled_from([-1.0, 0.0, 1.0]))
    w = toward if norm(toward) > 1e-6 else w
    w *= OMEGA / norm(w) * draw(st.sampled_from([0.0, 0.5, 1.0]))
    tau, eta = steps_and_eta(draw)
    return B, w, theta, tau, eta


def missed(B, theta):
    Q = np.linalg.qr(B)[0]
    return norm(theta - Q @ (Q.T @ theta))


def local_ratios(B, w, theta, tau, eta):
    """Left and right sides of everything the lemma claims."""
    path = local(B, w, theta[None], tau, eta)
    Bs, ws, rs = [b[0] for b in path.B], [v[0] for v in path.w], [r[0] for r in path.r]
    u = [norm(step[0]) for step in path.u]
    Delta = gram_defect(B)
    delta, p, eps, a = spectral(Delta), missed(B, theta), eta * (tau - 1), B.T @ theta
    error = 2.9 * eta + 2.19 * delta**2 + 1.101 * eps * p * p
    yield "B1(a) |w_s|", max(norm(v) for v in ws[1:]), OMEGA
    yield "B1(b) drift of Delta", max(spectral(gram_defect(b) - Delta) for b in Bs), 5.6 * eta
    yield "B1(c) p_s", max(missed(b, theta) for b in Bs), 1.0025 * p
    yield "B1(d) |u_0|", u[0], 2.09
    yield "B1(d) |u_1|, first form", u[1], 2.1 * delta + 2.316 * eta + 1.058 * eta * p * p
    yield "B1(d) |u_1|, second form", u[1], 2.09 * delta + 3.5 * eta
    yield "B1(d) |u_s|", max(u[2:], default=0.0), 0.0047
    yield "B1(e) sum of |u_s|", sum(u[1:]), 2.186 * delta + 2.411 * eta + 1.101 * eps * p * p
    yield "B1(e) sum of |r_s|", sum(norm(r) for r in rs[1:]), 1.0025 * (tau - 1) * p + 0.117
    yield "B1(e) |r_0|", rs[0] @ rs[0], 4.2564 + p * p
    later = 2.19 * delta**2 + 0.47 * eta + 1.101 * eps * p * p
    yield "B1(g) sum of later |u_s|", sum(u[2:]), later
    squares = 1.0051 * (tau - 1) * p * p + 0.0072
    yield "B1(g) sum of |r_s|^2", sum(r @ r for r in rs[1:]), squares
    yield "B1(f) w_1", norm(ws[1] - Delta @ w - a), 0.0
    for v in ws[2:]:
        yield "B1(f) e_s", norm(v - a - Delta @ a - Delta @ (Delta @ w)), error


@many
@given(local_states())
def test_lem_local(state):
    for name, left, right in local_ratios(*state):
        within(name, left, right)


def test_lem_local_is_nearly_sharp():
    # The longest head, against the truth, on a body that is too long: |u_0| comes within 0.1 %.
    B, theta = np.sqrt(1 + 1 / 40) * np.eye(2)[:, :1], np.eye(2)[0]
    found = {
        name: left / right
        for name, left, right in local_ratios(B, np.array([-OMEGA]), theta, 2, 1 / 480)
        if right
    }
    assert 0.999 < found["B1(d) |u_0|"] <= 1


@pytest.mark.parametrize(
    ("delta", "length", "longest", "tau", "eta"),
    [
        (0.6, OMEGA, 1.0, 3, 1 / 480),
        (0.0, 3.0, 1.0, 3, 1 / 480),
        (0.0, OMEGA, 3.0, 3, 1 / 480),
        (0.0, OMEGA, 1.0, 2, 1 / 20),
    ],
)
def test_lem_local_needs_four_of_its_bounds(delta, length, longest, tau, eta):
    # Breaking the fifth alone, on eta (tau - 1), broke nothing that we tried.
    B, theta = np.sqrt(1 - delta) * np.eye(3)[:, :1], longest * np.eye(3)[0]
    ratios = local_ratios(B, np.array([-length]), theta, tau, eta)
    assert max(left / right for _, left, right in ratios if right) > 1.1


# --- Lemma: one round of Gamma ------------------------------------------------------------------


@st.composite
def round_states(draw):
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, 3))
    d = k + draw(st.integers(1, 4))
    tau, eta = steps_and_eta(draw)
    B_star = orthonormal(rng, d, k)
    heads = unit_heads(rng, draw(st.integers(k + 1, 7)), k, draw(st.sampled_from([0.0, 0.5, 2.0])))
    before = heads if draw(st.booleans()) else heads[rng.integers(0, len(heads), len(heads))]
    E = draw(st.sampled_from([1 - 1e-8, 0.9, 0.5, 0.1, 0.01]))
    delta = draw(st.sampled_from([0.0, 1e-3, 0.02, 0.0249]))
    w = rng.standard_normal(k)
    w *= OMEGA / norm(w) * draw(st.sampled_from([0.0, 0.3, 1.0]))
    return rng.integers(2**32), B_star, heads, before, E, delta, w, tau, eta


def gamma_ratios(B, w, heads, B_star, tau, eta, earlier=None):
    """The lemma's claims in the round from (B, w); earlier: body and mean head a round before."""
    theta = heads @ B_star.T
    path = local(B, w, theta, tau, eta)
    eps, Delta, p = eta * (tau - 1), gram_defect(B), linear.subspace_distance(B, B_star)
    lam = max(0.0, eigvalsh(cov(theta @ B))[0])
    V, N, _ = moments(path, eta)
    yield "B2' |V_B|", spectral(V), 4.13 * eta**2 + 1.67 * eps**2 * p * p
    yield "B2(v) |N|", spectral(N), 4.71 * eta**2 + 2.22 * eps**2 * p * p
    grown = spectral(gamma(*path.server, eta)) - (1 - 2 * eta * lam) * spectral(gamma(B, w, eta))
    if earlier is None:
        bar = spectral(Delta)
        forcing = eta + 15 * eta**2 + 9.5 * eta * bar**2 + 4.69 * eps**2 * p * p
    else:
        B_before, mean_before = earlier
        bar = max(spectral(Delta), spectral(gram_defect(B_before)))
        p_before = linear.subspace_distance(B_before, B_star)
        beta = norm(heads.mean(axis=0) - mean_before)
        common = norm(Delta @ w + (theta @ B).mean(axis=0) - w)
        bound = 1.0125 * beta + 11.2 * eta + 4.34 * bar**2 + 2.27 * eps * p_before
        yield "B2(iv) |mean u_0|", common, bound
        forcing = 15 * eta**2 + 9.5 * eta * bar**2 + 4.69 * eps**2 * p * p
        forcing += 0.07 * eps**2 * p_before**2 + 2.06 * eta * beta**2
    yield "B2 growth of Gamma", max(0.0, grown), forcing


@many
@given(round_states())
def test_lem_gamma(state):
    seed, B_star, heads, before, E, delta, w, tau, eta = state
    rng = np.random.default_rng(seed)
    start = at(rng, B_star, E)
    B_before = with_defect(rng, start, delta)
    B, w = local(B_before, w, before @ B_star.T, tau, eta).server
    if spectral(gram_defect(B)) <= 1 / 40:
        earlier = B_before, before.mean(axis=0)
        for name, left, right in gamma_ratios(B, w, heads, B_star, tau, eta, earlier):
            within(name, left, right)
    zero = np.zeros_like(w)
    for name, left, right in gamma_ratios(start, zero, heads, B_star, tau, eta):
        within(name + " (first round)", left, right)


def test_lem_gamma_needs_a_round_before():
    # Without one, the common head may be anywhere, and the common step u_0 is not small.
    B_star, heads = np.eye(3)[:, :1], np.array([[1.0], [-1.0]])
    claims = gamma_ratios(
        B_star, np.array([OMEGA]), heads, B_star, 2, 1 / 480, (B_star, np.zeros(1))
    )
    found = {name: left / right for name, left, right in claims}
    assert found["B2(iv) |mean u_0|"] > 10
    assert found["B2 growth of Gamma"] > 10


def test_lem_gamma_bound_on_N_needs_a_small_defect():
    # With Delta = 0.9, residuals stay large for many steps, and N outgrows its bound.
    worst = 0.0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        B_star, heads = orthonormal(rng, 3, 1), unit_heads(rng, 5, 1)
        B = with_defect(rng, at(rng, B_star, 0.99), 0.9)
        earlier = B, heads.mean(axis=0)
        for name, left, right in gamma_ratios(B, np.ones(1), heads, B_star, 3, 1 / 480, earlier):
            if name == "B2(v) |N|":
                worst = max(worst, left / right)
    assert worst > 1.1


# --- Lemma: contraction of P --------------------------------------------------------------------


def contraction_sides(B, w, heads, B_star, E, tau, eta):
    theta = heads @ B_star.T
    mu2, eps = eigvalsh(cov(heads))[0], eta * (tau - 1)
    P = prior(local(B, w, theta, tau, eta).w[:-1], eta)
    yield "B3 diversity", 0.975 * mu2 * E, eigvalsh(cov(theta @ B))[0]
    yield "B3 contraction", 0.75 * eps * mu2 * E, 1 - spectral(P)


@many
@given(seeds, st.sampled_from([0.9999, 0.9, 0.5, 0.1, 0.02]), st.sampled_from([0.0, 0.5, 0.9]))
def test_lem_contraction(seed, E, share):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 4))
    tau = int(rng.choice([2, 3, 5, 20, 60]))
    B_star = orthonormal(rng, k + int(rng.integers(1, 5)), k)
    heads = unit_heads(rng, int(rng.integers(k + 1, 8)), k, rng.choice([0, 0.5, 2]))
    mu2 = eigvalsh(cov(heads))[0]
    B = with_defect(rng, at(rng, B_star, E), E * mu2 / 40 * share)
    E = 1 - outside_size(B, B_star) ** 2
    rho = E * mu2
    assume(rho > 1e-6)
    assume(spectral(gram_defect(B)) <= rho / 40)
    eta = min(rho**2 / 480, rho / 20 / (tau - 1)) * rng.choice([1, 0.3])
    w = rng.standard_normal(k)
    w *= OMEGA / norm(w) * rng.integers(0, 2)
    for name, left, right in contraction_sides(B, w, heads, B_star, E, tau, eta):
        within(name, left, right, slack=1e-14)


@pytest.mark.parametrize("change", ["one local step", "a long step", "a large defect"])
def test_lem_contraction_needs_each_of_its_bounds(change):
    B_star, heads = np.eye(4)[:, :2], np.vstack([np.eye(2), -np.eye(2)])
    B, w, eta, tau, E = 1.0 * B_star, np.zeros(2), 1e-4, 5, 1.0
    if change == "one local step":
        # An illustration: the lemma promises nothing at tau = 1, and nothing contracts: only the
        # common direction shrinks.
        w = np.array([1.0, 0.0])
        lost = 1 - spectral(prior(local(B, w, heads @ B_star.T, 1, eta).w[:-1], eta))
        assert lost < 1e-12 < 0.75 * eta * 0.5
        return
    if change == "a long step":
        eta = 2.5
    else:
        B = 0.3 * B_star
    sides = list(contraction_sides(B, w, heads, B_star, E, tau, eta))
    assert any(left > right + 1e-6 for _, left, right in sides)


# --- Theorem: FedAvg learns the representation --------------------------------------------------


def check_run(name, tasks, B0, tau, lr, num_rounds, promise, **options):
    """All of the theorem's conclusions along a run from w = 0."""
    options = dict(local_steps=tau, lr=lr, num_rounds=num_rounds) | options
    traj = linear.run(tasks, B0, np.zeros(tasks.k), **options)
    D, t = traj.D, np.arange(num_rounds + 1)
    E = 1 - D**2
    inner = np.sqrt(lr) * tasks.B_star.T @ traj.B
    within(f"{name} 1: |Delta|", traj.delta.max(), promise.delta_bar)
    within(f"{name} 1: |w|", norm(traj.w, axis=1).max() / np.sqrt(lr) / tasks.L_max, OMEGA)
    least = svd(inner, compute_uv=False)[:, -1] ** 2
    within(f"{name} 1: sigma_min", (39 / 40 * E / least).max(), 1)
    h = promise.eta * (tau - 1) * promise.mu2
    seen = D[:-1] > 1e-12
    lost = 1 - D[1:][seen] / D[:-1][seen]
    promised = 0.75 * h * E[:-1][seen]
    if len(lost):
        within(f"{name} 2: contraction", (promised / np.maximum(lost, 1e-300)).max(), 1, 1e-9)
        assert traj.D[1:][seen] == pytest.approx(D[:-1][seen] * (1 - lost))
    within(f"{name} 3: distance <= 1.013 D", (traj.distance - 1.013 * D).max(), 0, 1e-12)
    bounds = promise.bound(t)
    within(f"{name} 3: D", (D / np.maximum(bounds, 1e-300)).max(), 1, 1e-9)
    return traj


@many
@given(seeds, st.integers(1, 3), st.integers(2, 30), st.floats(0.05, 0.99), st.floats(0.1, 3.0))
def test_thm_representation(seed, k, tau, distance, scale):
    rng = np.random.default_rng(seed)
    d = k + int(rng.integers(1, 6))
    heads = scale * unit_heads(rng, int(rng.integers(k + 1, 8)), k, rng.choice([0, 0.5]))
    tasks = linear.LinearTasks(orthonormal(rng, d, k), heads)
    assume(tasks.diversity > 1e-3 * scale**2)
    lr = linear.largest_lr(tasks, distance=distance, local_steps=tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr)
    assert promise.holds, str(promise)
    check_run("B", tasks, B0, tau, lr, 40, promise)


@some
@given(seeds, st.sampled_from([10, 40, 160]), st.floats(0.1, 0.9))
def test_thm_representation_until_the_promised_round(seed, tau, distance):
    rng = np.random.default_rng(seed)
    heads = np.array([[1.0], [-1.0], [rng.uniform(-1, 1)]])
    tasks = linear.LinearTasks(orthonormal(rng, 4, 1), heads)
    lr = linear.largest_lr(tasks, distance=distance, local_steps=tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr)
    num_rounds = min(promise.rounds(0.05), 1500)
    traj = check_run("B", tasks, B0, tau, lr, num_rounds, promise)
    if num_rounds < 1500:
        within("B 4: distance at the promised round", traj.distance[-1], 0.05)
    total = 0.731 / (promise.eta * (tau - 1) * promise.mu2) * np.log(1 / promise.E0)
    within("B4: sum of squared distances", (traj.D**2).sum(), total)


@some
@given(seeds, st.integers(1, 2), st.integers(2, 20))
def test_thm_representation_admits_a_nearly_matched_start(seed, k, tau):
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + 3, k, 6, rng=rng, mean_size=0.5)
    lr = 0.99 * linear.largest_lr(tasks, distance=0.6, local_steps=tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=0.59, rng=rng)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr)
    B0 = with_defect(rng, np.sqrt(lr) * B0, 0.99 * promise.delta_bar / 40) / np.sqrt(lr)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr)
    assert promise.holds, str(promise)
    assert promise.conditions[2].margin < 1.1
    check_run("B nearly matched", tasks, B0, tau, lr, 40, promise)


@many
@given(seeds, st.integers(1, 3), st.integers(2, 400), st.floats(0.0, 0.999), st.floats(0.1, 9.0))
def test_cor_representation(seed, k, tau, distance, scale):
    rng = np.random.default_rng(seed)
    heads = scale * unit_heads(rng, k + 3, k, 0.5)
    tasks = linear.LinearTasks(orthonormal(rng, k + 2, k), heads)
    assume(tasks.diversity > 1e-4 * scale**2)
    E0 = 1 - distance**2
    for lr in (
        E0 * tasks.diversity / (17 * np.sqrt(tau) * tasks.L_max**3),
        E0 * tasks.diversity / tasks.L_max**3 / np.sqrt(280 * tau) * (1 - 1e-9),
    ):
        B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
        assert linear.guarantee(tasks, B0, local_steps=tau, lr=lr).holds


def test_cor_representation_needs_its_constant():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))
    lr = np.sqrt(4 / 280 / 2)  # four times the admitted eta, two steps
    B0 = linear.matched_start(tasks, lr=lr, distance=0.0, rng=np.random.default_rng(0))
    assert not linear.guarantee(tasks, B0, local_steps=2, lr=lr).holds


def four_heads(rng, E0=0.8, lr=0.1, d=5):
    tasks = linear.LinearTasks(orthonormal(rng, d, 2), np.vstack([np.eye(2), -np.eye(2)]))
    return tasks, at(rng, tasks.B_star, E0) / np.sqrt(lr)


def test_thm_representation_needs_two_local_steps():
    tasks, B0 = four_heads(np.random.default_rng(0))
    options = dict(lr=0.1, num_rounds=3000)
    one = linear.run(tasks, B0, np.zeros(2), local_steps=1, **options)
    assert one.distance[-1] == pytest.approx(one.distance[0])
    two = linear.run(tasks, B0, np.zeros(2), local_steps=2, **options)
    assert two.distance[-1] < 1e-3 * two.distance[0]


def test_thm_representation_needs_diverse_heads():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(orthonormal(rng, 5, 2), np.tile([[0.8, 0.6]], (4, 1)))
    B0 = at(rng, tasks.B_star, 0.5) / np.sqrt(0.1)
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=5, lr=0.1, num_rounds=5000)
    assert traj.distance.min() > 0.1
    assert traj.distance[-1] == pytest.approx(linear.span_floor(tasks, B0), rel=0.05)


def test_thm_representation_needs_small_steps():
    rng = np.random.default_rng(0)
    tasks, B0 = four_heads(rng, lr=np.sqrt(1.5))
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=5, lr=float(np.sqrt(1.5)), num_rounds=300)
    assert traj.delta.max() > 1 / 40
    tasks, B0 = four_heads(rng, lr=np.sqrt(3.0))
    with pytest.raises(FloatingPointError):
        linear.run(tasks, B0, np.zeros(2), local_steps=5, lr=float(np.sqrt(3.0)), num_rounds=300)


def test_thm_representation_needs_a_matched_start():
    tasks, B0 = four_heads(np.random.default_rng(0), lr=0.1)
    options = dict(local_steps=5, lr=0.1, num_rounds=300)
    with pytest.raises(FloatingPointError):
        linear.run(tasks, 2.2 * B0, np.zeros(2), **options)
    assert linear.run(tasks, 1.2 * B0, np.zeros(2), **options).distance[-1] < 0.01  # mild: works


def test_thm_representation_needs_a_steady_mean_head():
    # Two cohorts take turns. All holds but (H2): with beta = 0 the defect would stay small.
    base, S = np.vstack([np.eye(2), -np.eye(2)]) / 2, np.eye(5)[:, :2]
    jump = [linear.LinearTasks(S, base + np.array([mean, 0])) for mean in (0.5, -0.5)]
    both = linear.LinearTasks(S, np.vstack([cohort.heads for cohort in jump]))
    small = dict(local_steps=2, lr=2e-5**0.5)
    B, w = S / small["lr"] ** 0.5, np.zeros(2)
    still = linear.guarantee(both, B, diversity=0.125, **small)
    assert still.holds
    for j in range(2000):
        played = linear.one_round(jump[j % 2], B, w, **small)
        B, w = played.bodies[-1].mean(axis=0), played.heads[-1].mean(axis=0)
    assert spectral(gram_defect(small["lr"] ** 0.5 * B)) > 10 * still.delta_bar
    # With the true drift, beta = 1, no step is small enough for (C1).
    assert not linear.guarantee(both, B, diversity=0.125, mean_drift=1.0, **small).holds


# --- Theorem: the asymptotic factor -------------------------------------------------------------


def at_rest(B_star, heads, tau, eta):
    """A server (B, w) inside the truth that a round leaves in place; one feature."""

    def moved(x):
        B1, w1 = local(x[0] * B_star, x[1:], heads @ B_star.T, tau, eta).server
        return np.r_[B_star[:, 0] @ B1[:, 0] - x[0], w1 - x[1:]]

    x = root(moved, np.r_[1.0, heads.mean(axis=0)], tol=1e-14).x
    assert abs(moved(x)).max() < 1e-14
    return x[0] * B_star, x[1:]


@many
@given(seeds, st.integers(2, 30), st.integers(1, 6))
def test_thm_asymptotic_rate(seed, tau, more):
    """The proven bounds on Delta and P where the theorem's runs end."""
    rng = np.random.default_rng(seed)
    heads = np.r_[1.0, -1.0, rng.uniform(-1, 1, more)][:, None]
    tasks = linear.LinearTasks(orthonormal(rng, 3, 1), heads)
    lr = linear.largest_lr(tasks, distance=0.01, local_steps=tau)
    eta, mu2 = lr**2, tasks.diversity
    B, w = at_rest(tasks.B_star, heads, tau, eta)
    within("B5 |Delta|", spectral(gram_defect(B)), 10.2 * eta / mu2)
    P = prior(local(B, w, tasks.theta, tau, eta).w[:-1], eta)
    factor = linear.asymptotic_rate(tasks, local_steps=tau, lr=lr)
    gap = 1 - factor - 85 * eta**2 * tau / mu2 - 0.61 * (eta * tau) ** 2
    within("B5 proven gap", gap, 1 - spectral(P))


def test_thm_asymptotic_rate_is_where_a_run_ends():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-0.8], [0.7]]))
    B, w = at_rest(tasks.B_star, tasks.heads, 5, 0.01)
    B0 = np.array([[0.8], [0.6], [0.0]]) / np.sqrt(0.1)
    end = linear.run(tasks, B0, np.zeros(1), local_steps=5, lr=0.1, num_rounds=3000)[-1]
    assert np.sqrt(0.1) * end[0] == pytest.approx(np.sign(w @ end[1]) * B, abs=1e-9)


@pytest.mark.parametrize(
    ("k", "mean", "tau", "eta"),
    [
        (2, 0.0, 2, 0.02),
        (2, 0.7, 2, 0.02),
        (3, 0.5, 3, 0.01),
        (2, 0.4, 10, 0.002),
        (1, 0.5, 2, 0.02),
    ],
)
def test_thm_asymptotic_rate_is_sharp_to_first_order(k, mean, tau, eta):
    rng = np.random.default_rng(k)
    heads = rng.standard_normal((6, k))
    heads[:, 0] += mean
    tasks = linear.LinearTasks(orthonormal(rng, k + 3, k), heads / norm(heads, axis=1).max())
    lr = float(np.sqrt(eta))
    B0 = linear.matched_start(tasks, lr=lr, distance=0.1, rng=rng)
    traj = linear.run(tasks, B0, np.zeros(k), local_steps=tau, lr=lr, num_rounds=15000)
    alive = np.flatnonzero(traj.D > 1e-290)[-1]
    measured = 1 - (traj.D[alive] / traj.D[alive - 50]) ** (1 / 50)
    predicted = 1 - linear.asymptotic_rate(tasks, local_steps=tau, lr=lr)
    assert measured == pytest.approx(predicted, rel=0.05)


def test_thm_asymptotic_rate_needs_the_first_step_counted_apart():
    tasks, B0 = four_heads(np.random.default_rng(0), E0=0.99)
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=2, lr=0.1, num_rounds=500)
    measured = 1 - traj.D[-1] / traj.D[-2]
    as_if_diverse = 0.1**2 * 2 * eigvalsh(tasks.second_moment)[0]
    assert as_if_diverse / measured == pytest.approx(2, rel=0.02)


# --- Theorem: uncentred diversity, for a time ---------------------------------------------------


def uncentred(mu2, E0, tau, K):
    """Largest admitted eta, and the bound on Delta there."""
    L, rho = np.log(1 / E0), E0 * mu2
    force = 12 + 18 * K / (tau - 1) + 5 * (tau - 1) * L
    eta = min(min(rho / 40, (tau - 1) * mu2 / 80 / K) * mu2 / force, rho / 20 / (tau - 1))
    return eta, eta * force / mu2


@many
@given(seeds, st.integers(1, 2), st.integers(2, 60), st.floats(0.3, 0.99), st.floats(0.5, 4))
def test_thm_uncentred(seed, k, tau, E0, K):
    rng = np.random.default_rng(seed)
    heads = np.ones((2, 1)) if k == 1 else np.array([[1.0, 0.0], rng.uniform(0.3, 0.7, 2)])
    assume(eigvalsh(heads.T @ heads / 2)[0] > 0.02)
    tasks = linear.LinearTasks(orthonormal(rng, k + 2, k), heads)
    assert tasks.diversity < 1e-12
    mu2 = eigvalsh(tasks.second_moment)[0]
    eta, bound = uncentred(mu2, E0, tau, K)
    lr, h = float(np.sqrt(eta)), eta * (tau - 1) * mu2
    B0 = at(rng, tasks.B_star, E0) / lr**0.5
    T = min(int(K / h), 60)
    traj = linear.run(tasks, B0, np.zeros(k), local_steps=tau, lr=lr, num_rounds=T)
    D = traj.D
    within("B8 |Delta|", traj.delta.max(), bound)
    within("B8 contraction", (0.75 * h * (1 - D[:-1] ** 2) / (1 - D[1:] / D[:-1])).max(), 1, 1e-9)
    whole = D[0] / np.sqrt(1 - D[0] ** 2) * (1 - 0.68 * h) ** np.arange(T + 1)
    within("B8 D", (D / whole).max(), 1, 1e-9)


def test_thm_uncentred_until_its_last_round():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(orthonormal(rng, 3, 1), np.ones((2, 1)))
    K = np.log(1.013 * np.sqrt(0.3) / np.sqrt(0.7) / 0.1) / 0.68 + 1 / 20
    eta, bound = uncentred(1.0, 0.7, 10, K)
    lr = float(np.sqrt(eta))
    B0 = at(rng, tasks.B_star, 0.7) / np.sqrt(lr)
    T = int(K / (eta * 9))
    traj = linear.run(tasks, B0, np.zeros(1), local_steps=10, lr=lr, num_rounds=T)
    within("B8 |Delta|", traj.delta.max(), bound)
    within("B8 accuracy reached", traj.distance[-1], 0.1)


def test_thm_uncentred_needs_heads_that_span():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(orthonormal(rng, 5, 2), np.array([[1.0, 0.0], [0.5, 0.0]]))
    B0 = at(rng, tasks.B_star, 0.5) / np.sqrt(0.1)
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=5, lr=0.1, num_rounds=3000)
    assert traj.distance.min() > 0.1


@many
@given(seeds, st.integers(2, 4), st.integers(1, 5))
def test_prop_span_floor(seed, k, tau):
    rng = np.random.default_rng(seed)
    d = k + int(rng.integers(1, 5))
    spanned = int(rng.integers(1, k))  # heads within that many directions
    heads = rng.standard_normal((4, spanned)) @ orthonormal(rng, k, spanned).T
    tasks = linear.LinearTasks(orthonormal(rng, d, k), heads / norm(heads, axis=1).max())
    B0 = rng.standard_normal((d, k)) / 2
    floor = linear.span_floor(tasks, B0)
    options = dict(local_steps=tau, lr=0.1, num_rounds=60, cohort_size=2, rng=rng)
    traj = linear.run(tasks, B0, rng.standard_normal(k), **options)
    fine = traj.condition < 1e6
    within("span floor", floor, traj.distance[fine].min(), 1e-9)
    assert floor <= linear.one_step_floor(tasks, B0) + 1e-9


def test_prop_span_floor_needs_heads_within_a_hyperplane():
    tasks, B0 = four_heads(np.random.default_rng(0))
    assert linear.span_floor(tasks, B0) < 1e-12


# --- Theorem: one step ----------------------------------------------------------------------------


def one_step(B, w, v, rng, num_rounds):
    """D-GD with other random step sizes in every round, and heavy-ball momentum."""
    past_B, past_w = np.zeros_like(B), np.zeros_like(w)
    for _ in range(num_rounds):
        r = B @ w - v
        momentum, a, b = rng.uniform(0, 0.5), rng.uniform(0, 0.1), rng.uniform(0, 0.1)
        past_B, past_w = momentum * past_B - a * r @ w.T, momentum * past_w - b * B.T @ r
        B, w = B + past_B, w + past_w
    return B


def any_heads(B, v, rng, num_rounds=50):
    """Bodies of the theorem's recursion: random steps and momentum, heads unlike D-GD's."""
    bodies, before = [B], B
    for _ in range(num_rounds):
        w = rng.standard_normal((B.shape[1], v.shape[1]))
        step, momentum = rng.uniform(0, 0.2), rng.uniform(0, 0.3)
        B, before = B - step * (B @ w - v) @ w.T / spectral(w) ** 2 + momentum * (B - before), B
        bodies.append(B)
    return bodies


def check_floor(name, tasks, B0, w0, floor, num_rounds=400, lr=0.05):
    traj = linear.run(tasks, B0, w0, local_steps=1, lr=lr, num_rounds=num_rounds)
    sizes = svd(traj.coords, compute_uv=False)
    fine = sizes[:, -1] > 1e-6 * sizes.max()  # beyond, digits of the distance are lost
    within(name, floor, traj.distance[fine].min(), 1e-8)
    return traj


def leak(B, *seen):
    """Share of B outside the span of the matrices given (if it shrank, of the first of them)."""
    W = np.linalg.qr(np.column_stack(seen))[0]
    return spectral(B - W @ (W.T @ B)) / max(spectral(B), spectral(seen[0]))


@many
@given(seeds, st.integers(1, 4), st.integers(2, 6))
def test_thm_one_step_floor(seed, k, more):
    rng = np.random.default_rng(seed)
    d = k + more
    tasks = linear.LinearTasks(orthonormal(rng, d, k), unit_heads(rng, 5, k, 0.5))
    B0, w0 = rng.standard_normal((d, k)) / 2, rng.standard_normal(k)
    floor = linear.one_step_floor(tasks, B0)
    within("C(i) floor at the start", floor, linear.subspace_distance(B0, tasks.B_star))
    check_floor("C(i) floor", tasks, B0, w0, floor)
    v = tasks.B_star @ tasks.mean_head[:, None]
    assert leak(one_step(B0, w0[:, None], v, rng, 200), B0, v) < 1e-10


def test_thm_one_step_floor_needs_all_clients():
    rng = np.random.default_rng(0)
    tasks, B0 = four_heads(rng)
    options = dict(local_steps=1, lr=0.1, num_rounds=200)
    sampled = linear.run(tasks, B0, np.ones(2), cohort_size=1, rng=rng, **options)
    assert leak(sampled.B[-1], B0) > 1e-3
    assert sampled.distance.min() < linear.one_step_floor(tasks, B0) - 1e-3


def test_thm_one_step_floor_needs_one_step():
    tasks, B0 = four_heads(np.random.default_rng(0))
    traj = linear.run(tasks, B0, np.zeros(2), local_steps=2, lr=0.1, num_rounds=3000)
    assert traj.distance[-1] < 1e-3 < 0.4 < linear.one_step_floor(tasks, B0)


@many
@given(seeds, st.integers(2, 4), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_thm_one_step_worst_case(seed, k, more, distance):
    rng = np.random.default_rng(seed)
    heads, B0 = unit_heads(rng, 5, k, 0.5), rng.standard_normal((k + more, k)) / 2
    tasks = linear.worst_case_tasks(B0, heads, distance=distance)
    assert linear.subspace_distance(B0, tasks.B_star) == pytest.approx(distance, abs=1e-9)
    assert linear.one_step_floor(tasks, B0) == pytest.approx(distance, abs=1e-9)
    check_floor("C(ii) no progress", tasks, B0, rng.standard_normal(k), distance)
    bodies = any_heads(B0, tasks.B_star @ tasks.mean_head[:, None], rng)
    sizes = svd(np.array(bodies), compute_uv=False)
    for B in np.array(bodies)[sizes[:, -1] > 1e-6 * sizes.max()]:
        distance_now = linear.subspace_distance(B, tasks.B_star)
        within("C(ii) no progress, any heads", distance, distance_now, 1e-8)
    assert leak(bodies[-1], B0) < 1e-10


def test_worst_truth_does_not_depend_on_the_basis_that_lapack_finds():
    rng = np.random.default_rng(0)
    B0, turn = orthonormal(rng, 7, 3), np.triu(rng.random((3, 3))) + np.eye(3)
    for heads in (rng.standard_normal((5, 3)), np.vstack([np.eye(3), -np.eye(3)])):
        truths = [linear.worst_case_tasks(B, heads, distance=0.8).B_star for B in (B0, B0 @ turn)]
        assert np.allclose(*truths, atol=1e-9)
        with_signs = linear.worst_case_tasks(B0 * [1, -1, 1], heads, distance=0.8).B_star
        assert linear.subspace_distance(B0, with_signs) == pytest.approx(0.8, abs=1e-9)


def test_thm_one_step_worst_case_needs_one_step():
    rng = np.random.default_rng(0)
    heads = np.vstack([np.eye(2), -np.eye(2)]) + np.array([0.6, 0.0])
    B0 = orthonormal(rng, 6, 2) / np.sqrt(0.1)
    tasks = linear.worst_case_tasks(B0, heads / 1.6, distance=0.8)
    options = dict(lr=0.1, num_rounds=6000)
    one = linear.run(tasks, B0, np.zeros(2), local_steps=1, **options)
    assert one.distance.min() > 0.8 - 1e-9
    two = linear.run(tasks, B0, np.zeros(2), local_steps=2, **options)
    assert two.distance[-1] < 1e-4


def test_thm_one_step_worst_case_needs_two_features():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(orthonormal(rng, 6, 1), np.ones((1, 1)))
    B0 = linear.matched_start(tasks, lr=0.1, distance=0.9, rng=rng)
    traj = linear.run(tasks, B0, np.full(1, 0.5), local_steps=1, lr=0.1, num_rounds=3000)
    assert traj.distance[-1] < 0.01
    assert linear.one_step_floor(tasks, B0) < 1e-9


@many
@given(seeds, st.integers(1, 3), st.integers(1, 5))
def test_thm_one_step_mean_zero(seed, k, more):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((3, k))
    heads = np.vstack([half, -half]) / norm(half, axis=1).max()
    tasks = linear.LinearTasks(orthonormal(rng, k + more, k), heads)
    B0 = rng.standard_normal((k + more, k))
    B0 /= spectral(B0)
    start = linear.subspace_distance(B0, tasks.B_star)
    assert linear.one_step_floor(tasks, B0) == pytest.approx(start, abs=1e-9)
    w0 = rng.standard_normal(k) / 2
    check_floor("C(iii) no progress", tasks, B0, w0, start)
    assert leak(one_step(B0, w0[:, None], np.zeros((k + more, 1)), rng, 200), B0) < 1e-10


@many
@given(seeds, st.integers(2, 4), st.integers(1, 5), st.integers(1, 3))
def test_thm_one_step_mean_zero_from_a_start_of_deficient_rank(seed, k, more, rank):
    rng = np.random.default_rng(seed)
    rank, half = min(rank, k - 1), rng.standard_normal((3, k))
    heads = np.vstack([half, -half]) / norm(half, axis=1).max()
    tasks = linear.LinearTasks(orthonormal(rng, k + more, k), heads)
    L = orthonormal(rng, k + more, rank)
    B0 = L @ rng.standard_normal((rank, k))
    B0 /= spectral(B0)
    assert linear.subspace_distance(B0, tasks.B_star) == 1
    assert linear.one_step_floor(tasks, B0) == pytest.approx(1, abs=1e-9)
    v, w0 = np.zeros((k + more, 1)), rng.standard_normal((k, 1)) / 2
    for B in (one_step(B0, w0, v, rng, 200), any_heads(B0, v, rng)[-1]):
        inside = L.T @ B  # B has no other part, so its columns are L's, rank < k of them
        assert spectral(B - L @ inside) < 1e-12
        assert svd(inside.T @ L.T @ tasks.B_star, compute_uv=False)[-1] < 1e-12
        assert linear.subspace_distance(L @ inside, tasks.B_star) == 1


def test_thm_one_step_mean_zero_needs_mean_zero():
    tasks = linear.LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-0.5]]))
    B0 = np.array([[0.6], [0.8], [0.0]])
    traj = linear.run(tasks, B0, np.full(1, 0.5), local_steps=1, lr=0.1, num_rounds=3000)
    assert traj.distance[-1] < 0.5 * traj.distance[0]


# --- Theorem: several outputs -------------------------------------------------------------------


def matrix_heads(rng, num_clients, k, c, rank):
    """Random k × c heads whose mean has the rank asked for."""
    heads = rng.standard_normal((num_clients, k, c))
    heads -= heads.mean(axis=0)
    if rank:
        heads += rng.standard_normal((k, rank)) @ rng.standard_normal((rank, c))
    return heads / np.sqrt((heads**2).sum(axis=(1, 2)).max())


@many
@given(seeds, st.integers(1, 3), st.integers(2, 4), st.floats(0, 1))
def test_thm_matrix_heads(seed, k, c, distance):
    rng = np.random.default_rng(seed)
    d = 2 * k + 2
    rank = int(rng.integers(0, min(k, c) + 1))
    heads = matrix_heads(rng, 5, k, c, rank)
    B0, W0 = rng.standard_normal((d, k)) / 2, rng.standard_normal((k, c)) / 2
    tasks = linear.LinearTasks(orthonormal(rng, d, k), heads)
    check_floor("C'(i) floor", tasks, B0, W0, linear.one_step_floor(tasks, B0), 200)
    v = tasks.B_star @ tasks.mean_head
    seen = (B0, v) if rank else (B0,)
    assert leak(one_step(B0, W0, v, rng, 100), *seen) < 1e-10
    if rank < k:
        worst = linear.worst_case_tasks(B0, heads, distance=distance)
        assert linear.one_step_floor(worst, B0) == pytest.approx(distance, abs=1e-9)
        assert linear.subspace_distance(B0, worst.B_star) == pytest.approx(distance, abs=1e-9)
        check_floor("C'(ii) no progress", worst, B0, W0, distance, 200)


def test_thm_matrix_heads_needs_a_mean_head_of_deficient_rank():
    rng = np.random.default_rng(0)
    heads = matrix_heads(rng, 20, 2, 4, 2)
    tasks = linear.LinearTasks(orthonormal(rng, 6, 2), heads)
    B0 = linear.matched_start(tasks, lr=0.2, distance=0.9, rng=rng)
    W0 = 0.05 * rng.standard_normal((2, 4))
    traj = linear.run(tasks, B0, W0, local_steps=1, lr=0.2, num_rounds=5000)
    assert traj.distance[-1] < 0.05
    with pytest.raises(ValueError, match="their mean has rank k=2"):
        linear.worst_case_tasks(B0, heads, distance=0.9)


@many
@given(seeds, st.integers(1, 3), st.integers(2, 5))
def test_thm_matrix_heads_with_private_orders(seed, k, c):
    """The mean over all permutations has rank one, or is zero; draws scatter as bounded."""
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks(orthonormal(rng, k + 1, k), rng.standard_normal((8, k, c)))
    draws = np.array([tasks.private_orders(rng=rng).mean_head for _ in range(30)])
    expected = tasks.mean_head @ np.ones((c, c)) / c
    scatter = ((draws - expected) ** 2).sum(axis=(1, 2)).mean()
    within("C'(iii) scatter of the mean head", scatter, tasks.L_max**2 / 8)
    rolled = np.concatenate([np.roll(tasks.heads, i, axis=2) for i in range(c)])
    assert rolled.mean(axis=0) == pytest.approx(expected)  # all cyclic orders, equally often
    centred = rolled - rolled.mean(axis=2, keepdims=True)
    assert abs(centred.mean(axis=0)).max() < 1e-12


def test_thm_matrix_heads_with_private_orders_needs_independent_orders():
    rng = np.random.default_rng(0)
    V = rng.standard_normal((3, 5))
    tasks = linear.LinearTasks(orthonormal(rng, 4, 3), np.repeat(V[None], 8, axis=0))
    expected, bound = V @ np.ones((5, 5)) / 5, tasks.L_max**2 / 8
    one = [V[:, rng.permutation(5)] for _ in range(1000)]  # all clients draw the same order
    own = [tasks.private_orders(rng=rng).mean_head for _ in range(1000)]
    common, private = (((np.array(x) - expected) ** 2).sum(axis=(1, 2)).mean() for x in (one, own))
    assert private < bound
    assert common > 5 * bound


def test_thm_matrix_heads_with_private_orders_needs_many_steps_to_learn():
    rng = np.random.default_rng(4)
    common = rng.standard_normal((1, 3, 5))
    heads = common - common.mean(axis=2, keepdims=True) + 0.3 * rng.standard_normal((40, 3, 5))
    shared = linear.LinearTasks(
        orthonormal(rng, 12, 3), heads / np.sqrt((heads**2).sum((1, 2)).max())
    )
    orders = np.stack([np.roll(shared.heads[i // 5], i % 5, axis=1) for i in range(40)])
    private = linear.LinearTasks(shared.B_star, orders)
    B0 = linear.matched_start(shared, lr=0.2, distance=0.95, rng=rng)
    W0 = 0.05 * rng.standard_normal((3, 5))

    def final(tasks, tau, num_rounds):
        options = dict(local_steps=tau, lr=0.2, num_rounds=num_rounds)
        return linear.run(tasks, B0, W0, **options).distance[-1]

    assert final(shared, 1, 2500) < 0.1
    assert final(private, 1, 2500) > 0.5
    assert final(private, 5, 500) < 0.1


# --- Theorem: partial participation -------------------------------------------------------------


def cohort_lr(tasks, E0, tau):
    rho = E0 * tasks.diversity / tasks.L_max**2
    force = 12 + 5 * (tau - 1) * E0 * np.log(1 / E0)
    eta = min(rho**2 / 143 / force, 3 * rho / 80 / (tau - 1))
    return float(np.sqrt(eta)) / tasks.L_max * (1 - 1e-9)


@many
@given(seeds, st.integers(2, 60), st.floats(0.1, 0.9), st.integers(1, 10**5), st.floats(0.01, 0.5))
def test_thm_cohort_gives_the_hypotheses_of_the_main_theorem(seed, tau, distance, num_rounds, q):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 4))
    tasks = linear.LinearTasks.random(k + 2, k, 2 * k + 2, rng=rng, mean_size=0.3)
    needed = linear.cohort_needed(tasks, distance=distance, num_rounds=num_rounds, failure=q)
    lr = cohort_lr(tasks, 1 - distance**2, tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    options = dict(diversity=needed.diversity, drift_share=needed.drift_share)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr, **options)
    assert promise.holds, str(promise)
    within("D delta_bar", promise.delta_bar, 3 * promise.E0 * tasks.diversity / 160)
    if needed.size < 10**6:  # and the draws have that diversity and drift (more than w.p. 1 - q)
        counts = rng.multinomial(needed.size, np.full(len(tasks.heads), 1 / len(tasks.heads)), 2)
        p = counts / needed.size
        means = p @ tasks.heads
        spread = np.einsum("ri,ij,il->rjl", p, tasks.heads, tasks.heads)
        spread -= means[:, :, None] * means[:, None, :]
        within("D diversity of a cohort", needed.diversity, eigvalsh(spread)[:, 0].min())
        within("D drift of the mean", norm(means[1] - means[0]), needed.mean_drift)
        within("D drift over covariance", drift_share(means, spread), needed.drift_share)


def drift_share(means, spread):
    """The least χ of Lemma 8.1 for two cohorts in a row."""
    move = means[1] - means[0]
    return move @ np.linalg.solve(spread[1], move)


@many
@given(seeds, st.integers(1, 4), st.integers(10, 10**6), st.floats(1e-3, 0.5))
def test_thm_cohort_gives_less_drift_than_its_proof_allows(seed, k, num_rounds, q):
    # A hundred rounds with the cohort asked for, and with one that is far too small.
    rng = np.random.default_rng(seed)
    tasks = linear.LinearTasks.random(k + 2, k, 3 * k, rng=rng, mean_size=0.5)
    needed = linear.cohort_needed(tasks, distance=0.3, num_rounds=num_rounds, failure=q)

    def found(size):
        counts = rng.multinomial(size, np.full(len(tasks.heads), 1 / len(tasks.heads)), 100)
        p = counts / size
        means = p @ tasks.heads
        spread = np.einsum("ri,ij,il->rjl", p, tasks.heads, tasks.heads)
        spread -= means[:, :, None] * means[:, None, :]
        return max(drift_share(means[t : t + 2], spread[t : t + 2]) for t in range(99))

    assert found(needed.size) <= needed.drift_share
    assert found(max(6 * k, needed.size // 200)) > needed.drift_share


def test_thm_cohort():
    rng = np.random.default_rng(0)
    tasks = linear.LinearTasks(orthonormal(rng, 4, 1), np.array([[1.0], [-1.0]]))
    E0, tau, T = 0.95, 20, 1500
    distance = float(np.sqrt(1 - E0))
    needed = linear.cohort_needed(tasks, distance=distance, num_rounds=T, failure=0.05)
    lr = cohort_lr(tasks, E0, tau)
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    options = dict(diversity=needed.diversity, drift_share=needed.drift_share)
    promise = linear.guarantee(tasks, B0, local_steps=tau, lr=lr, **options)
    drawn = dict(cohort_size=needed.size, replace=True, rng=rng)
    check_run("D", tasks, B0, tau, lr, T, promise, **drawn)


def test_thm_cohort_needs_many_clients_a_round():
    rng = np.random.default_rng(0)
    tasks, B0 = four_heads(rng, E0=0.9, lr=0.01)
    assert cohort_lr(tasks, 0.9, 2) > 0.01  # an admitted step
    options = dict(local_steps=2, lr=0.01, num_rounds=3000)
    few = linear.run(tasks, B0, np.zeros(2), cohort_size=2, replace=True, rng=rng, **options)
    full = linear.run(tasks, B0, np.zeros(2), **options)
    assert full.delta.max() < 3 * 0.9 * 0.5 / 160 < few.delta.max()


# --- Theorem: fine-tuning -----------------------------------------------------------------------


def client(seed=0, d=8, k=2):
    rng = np.random.default_rng(seed)
    B_star = orthonormal(rng, d, k)
    theta = B_star @ rng.standard_normal(k)
    B = (B_star + 0.2 * rng.standard_normal((d, k))) @ rng.standard_normal((k, k))
    return rng, B, theta


def risks(rng, theta, n, sigma, estimate, repeats=4000, draw=None):
    """Mean and standard error of |estimate - theta|² over fresh data sets."""
    X = rng.standard_normal((repeats, n, len(theta))) if draw is None else draw(repeats, n)
    y = X @ theta + sigma * rng.standard_normal((repeats, n))
    found = ((estimate(X, y) - theta) ** 2).sum(axis=1)
    return found.mean(), found.std() / np.sqrt(repeats)


def least_squares(X, y):
    """Least squares, or the shortest interpolant, for a stack of data sets."""
    return np.einsum("rdn,rn->rd", np.linalg.pinv(X), y)


def head_least_squares(B):
    return lambda X, y: least_squares(X @ B, y) @ B.T


def one_head_step(B, w, lr):
    def estimate(X, y):
        G = X @ B
        gradient = np.einsum("rnk,rn->rk", G, G @ w - y) / X.shape[1]
        return (w - lr * gradient) @ B.T

    return estimate


def agrees(measured, formula):
    value, error = measured
    assert abs(value - formula) < 4.5 * error


@pytest.mark.parametrize("n", [7, 12, 40])
def test_thm_fine_tuning_head(n):
    rng, B, theta = client()
    formula = linear.fine_tuning_risk(B, theta, num_samples=n, noise_std=0.5)
    agrees(risks(rng, theta, n, 0.5, head_least_squares(B)), formula)


def test_thm_fine_tuning_head_below_the_number_of_features():
    rng, B, theta = client(d=12, k=6)
    Q = np.linalg.qr(B)[0]
    formula = linear.fine_tuning_risk(B, theta, num_samples=2, noise_std=0.5)
    agrees(risks(rng, theta, 2, 0.5, head_least_squares(Q)), formula)


@pytest.mark.parametrize("n", [3, 5, 13, 40])
def test_thm_fine_tuning_scratch(n):
    rng, _, theta = client()
    formula = linear.scratch_risk(8, theta, num_samples=n, noise_std=0.5)
    agrees(risks(rng, theta, n, 0.5, least_squares), formula)


@pytest.mark.parametrize(("n", "share"), [(1, 0.3), (3, 0.5), (20, 1.0)])
def test_thm_fine_tuning_step(n, share):
    rng, B, theta = client()
    w, lr = rng.standard_normal(2), share / spectral(B) ** 2
    options = dict(num_samples=n, noise_std=0.5, lr=lr)
    formula = linear.head_step_risk(B, w, theta, **options)
    agrees(risks(rng, theta, n, 0.5, one_head_step(B, w, lr)), formula)


@many
@given(seeds, st.integers(1, 100), st.floats(0.01, 2), st.floats(0.01, 3))
def test_thm_fine_tuning_step_of_an_orthonormal_body(seed, n, a, alpha):
    rng, B, theta = client(seed)
    k, Q = 2, np.linalg.qr(B)[0]
    v0, inside = rng.standard_normal(k), Q.T @ theta
    missed_risk = norm(theta - Q @ inside) ** 2
    gap = norm(v0 - inside) ** 2
    formula = missed_risk + (1 - 2 * a + a * a * (1 + (k + 1) / n)) * gap
    formula += a * a * k / n * (0.25 + missed_risk)
    options = dict(num_samples=n, noise_std=0.5, lr=a * alpha)
    found = linear.head_step_risk(Q / np.sqrt(alpha), np.sqrt(alpha) * v0, theta, **options)
    assert found == pytest.approx(formula)


@many
@given(seeds, st.integers(1, 5), st.integers(1, 9), st.integers(2, 60), st.floats(0.1, 2))
def test_thm_fine_tuning_threshold(seed, k, more, extra, sigma):
    rng = np.random.default_rng(seed)
    d = k + more
    n = d + extra
    threshold = linear.fine_tuning_threshold(d, k, num_samples=n, noise_std=sigma)
    B, inside = np.eye(d)[:, :k], rng.standard_normal(k)
    for factor in (0.9, 1.0, 1.1):
        theta = np.r_[inside, np.sqrt(factor * threshold), np.zeros(more - 1)]
        tuned = linear.fine_tuning_risk(B, theta, num_samples=n, noise_std=sigma)
        scratch = linear.scratch_risk(d, theta, num_samples=n, noise_std=sigma)
        if factor == 1:
            assert tuned == pytest.approx(scratch)
        else:
            assert (tuned < scratch) == (factor < 1)


def test_thm_fine_tuning_risks_are_infinite_where_they_should_be():
    _, B, theta = client()
    counts = np.arange(1, 13)
    tuned = linear.fine_tuning_risk(B, theta, num_samples=counts, noise_std=0.5)
    assert counts[np.isinf(tuned)].tolist() == [1, 2, 3]
    scratch = linear.scratch_risk(8, theta, num_samples=counts, noise_std=0.5)
    assert counts[np.isinf(scratch)].tolist() == [7, 8, 9]
    exact = linear.scratch_risk(8, theta, num_samples=counts, noise_std=0.0)
    assert exact == pytest.approx(np.maximum(0, 1 - counts / 8) * (theta @ theta))


@many
@given(seeds, st.floats(0.0, 0.9), st.integers(1, 5))
def test_thm_fine_tuning_population_steps(seed, delta, steps):
    rng = np.random.default_rng(seed)
    B = with_defect(rng, orthonormal(rng, 6, 3), delta)
    delta = spectral(gram_defect(B))
    theta, w0 = rng.standard_normal(6), rng.standard_normal(3)
    best, w = np.linalg.lstsq(B, theta, rcond=None)[0], w0
    for _ in range(steps):
        w = w - B.T @ (B @ w - theta)
    reach = delta ** (2 * steps) * norm(B @ (w0 - best)) ** 2
    floor = norm(B @ best - theta) ** 2
    within("E(4) head steps", norm(B @ w - theta) ** 2 - floor, reach, slack=1e-12)


def test_thm_fine_tuning_needs_isotropic_inputs():
    rng, B, theta = client()
    scales = np.r_[np.full(4, 0.2), np.full(4, 2.0)]
    draw = lambda repeats, n: rng.standard_normal((repeats, n, 8)) * scales  # noqa: E731
    for estimate, formula in (
        (head_least_squares(B), linear.fine_tuning_risk(B, theta, num_samples=12, noise_std=0.5)),
        (least_squares, linear.scratch_risk(8, theta, num_samples=12, noise_std=0.5)),
    ):
        value, error = risks(rng, theta, 12, 0.5, estimate, draw=draw)
        assert abs(value - formula) > 10 * error


def test_thm_fine_tuning_needs_a_start_independent_of_the_data():
    rng, B, theta = client()

    lucky_heads = []

    def lucky(X, y):  # the least-squares head of the very same examples: a step leaves it in place
        lucky_heads.extend(least_squares(X @ B, y))
        return np.array(lucky_heads) @ B.T

    value, error = risks(rng, theta, 6, 0.5, lucky)
    options = dict(num_samples=6, noise_std=0.5, lr=0.5 / spectral(B) ** 2)
    formula = np.mean([linear.head_step_risk(B, w, theta, **options) for w in lucky_heads])
    assert abs(value - formula) > 5 * error


def test_thm_fine_tuning_needs_a_matched_body_for_one_good_step():
    _, B, theta = client()
    Q = np.linalg.qr(B)[0]
    floor = norm(theta - Q @ (Q.T @ theta)) ** 2
    one = dict(num_samples=10**9, noise_std=0.5, lr=1.0)
    assert linear.head_step_risk(Q, np.zeros(2), theta, **one) == pytest.approx(floor, abs=1e-6)
    assert linear.head_step_risk(0.3 * Q, np.zeros(2), theta, **one) > floor + 0.1


# --- Theorem: a perturbed server ----------------------------------------------------------------


UNEVEN = np.array([[1.0, 0.0], [-0.6, 0.6], [0.2, -0.9], [0.4, 0.5]])  # their mean is not zero


def perturbed(rng, kind, E0, tau, factor, num_rounds, heads=None):
    """Δ, D and the bound on D of a run whose server adds a matrix of norm factor * nu."""
    heads = np.array([[1.0], [-1.0]]) if heads is None else heads
    k, rho, D0 = heads.shape[1], E0 * eigvalsh(cov(heads))[0], np.sqrt(1 - E0)
    B_star = orthonormal(rng, k + 3, k)
    B, w = at(rng, B_star, E0), np.zeros(k)
    eta = min(rho**2 / 80 / (12 + 9 * (tau - 1) * D0**2), rho / 20 / (tau - 1))
    nu, eps = eta * rho**2 / 120, eta * (tau - 1)
    floor = nu / (0.75 * eps * rho)
    assert floor <= D0
    Delta, D = [spectral(gram_defect(B))], [D0]
    for _ in range(num_rounds):
        B, w = local(B, w, heads @ B_star.T, tau, eta).server
        N = rng.standard_normal(B.shape)
        if kind == "away":  # pushes outwards, in the direction in which B errs
            N = B - B_star @ (B_star.T @ B)
        if kind == "longer":  # drives the defect
            N = B
        B = B + factor * nu * N / spectral(N)
        Delta.append(spectral(gram_defect(B)))
        D.append(outside_size(B, B_star))
    decay = (1 - 0.75 * eps * rho) ** np.arange(num_rounds + 1)
    return np.array(Delta), np.array(D), decay * D0 + (1 - decay) * floor, rho


@many
@given(seeds, st.sampled_from(["random", "away"]), st.floats(0.3, 0.95), st.integers(2, 20))
def test_thm_perturbation(seed, kind, E0, tau):
    Delta, D, bound, rho = perturbed(np.random.default_rng(seed), kind, E0, tau, 1.0, 25)
    within("F |Delta|", Delta.max(), rho / 40)
    within("F D <= D_0", D.max(), D[0])
    within("F D", (D / bound).max(), 1, 1e-9)


@many
@given(seeds, st.sampled_from(["random", "away", "longer"]), st.floats(0.3, 0.95))
def test_thm_perturbation_with_two_features_and_a_mean_head(seed, kind, E0):
    rng = np.random.default_rng(seed)
    tau = int(rng.integers(2, 21))
    Delta, D, bound, rho = perturbed(rng, kind, E0, tau, 1.0, 25, UNEVEN)
    within("F |Delta|, k = 2", Delta.max(), rho / 40)
    within("F D <= D_0, k = 2", D.max(), D[0])
    within("F D, k = 2", (D / bound).max(), 1, 1e-9)


@pytest.mark.parametrize("kind", ["random", "away"])
def test_thm_perturbation_until_the_floor(kind):
    Delta, D, bound, rho = perturbed(np.random.default_rng(0), kind, 0.6, 40, 1.0, 4000)
    within("F |Delta|", Delta.max(), rho / 40)
    within("F D", (D / bound).max(), 1, 1e-9)
    assert D[-1] < 0.1 * D[0]


def test_thm_perturbation_needs_its_bound_on_the_noise():
    _, D, bound, _ = perturbed(np.random.default_rng(0), "away", 0.99, 40, 1.0, 800)
    assert D[-1] <= bound[-1]
    _, D, bound, _ = perturbed(np.random.default_rng(0), "away", 0.99, 40, 20.0, 800)
    assert 5 * bound[-1] < D[-1] <= 20 * bound[-1]  # the formula with 20 nu still holds
