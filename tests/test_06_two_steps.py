"""Chapter 6's statements beside the identities, which are in test_linear_statements.py."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import eigvalsh, norm, svd

from fedlib import linear

many = settings(max_examples=200, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def gram_defect(B):
    return np.eye(B.shape[1]) - B.T @ B


def cov(x):
    y = x - x.mean(axis=0)
    return y.T @ y / len(x)


def local(B, w, theta, tau, eta, head_step=1.0):
    """Bodies, heads and residuals of all clients along τ normalised local steps.

    Heads are (k, c) matrices; ``theta`` has shape (clients, d, c).
    """
    Bs, ws = [np.repeat(B[None], len(theta), 0)], [np.repeat(w[None], len(theta), 0)]
    rs = []
    for _ in range(tau):
        r = Bs[-1] @ ws[-1] - theta
        rs.append(r)
        ws_new = ws[-1] - head_step * Bs[-1].transpose(0, 2, 1) @ r
        Bs.append(Bs[-1] - eta * r @ ws[-1].transpose(0, 2, 1))
        ws.append(ws_new)
    return np.array(Bs), np.array(ws), np.array(rs)


@st.composite
def states(draw, outputs=False):
    """Truth, normalised true heads, a body, a head, τ and η; nothing is small but |θ| ≤ 1."""
    rng = np.random.default_rng(draw(seeds))
    k = draw(st.integers(1, 4))
    d, num = k + draw(st.integers(1, 5)), draw(st.integers(1, 8))
    c = draw(st.integers(1, 4)) if outputs else 1
    B_star, heads = orthonormal(rng, d, k), rng.standard_normal((num, k, c))
    heads /= norm(heads, axis=(1, 2)).max()
    B = rng.standard_normal((d, k))
    B *= draw(st.floats(0.3, 1.2)) / norm(B, 2)
    w = rng.standard_normal((k, c))
    w *= draw(st.floats(0, 1.5)) / norm(w)
    return B_star, heads, B, w, draw(st.integers(1, 5)), draw(st.floats(1e-3, 0.3))


# --- Rescaling, for unequal step sizes (Exercise 6.1) -------------------------------------------


@many
@given(states(), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_prop_rescaling_of_unequal_steps(state, head_lr, body_lr):
    B_star, heads, B, w, tau, _ = state
    heads = 2 * heads  # longest head 2
    theta, size = B_star @ heads, np.sqrt(head_lr)
    found = local(B, w, theta, tau, body_lr, head_step=head_lr)
    scaled = local(size * B, w / size / 2, theta / 2, tau, head_lr * body_lr * 4)
    assert abs(scaled[0] - size * found[0]).max() <= 1e-12 * max(1, abs(found[0]).max())
    assert abs(scaled[1] * size * 2 - found[1]).max() <= 1e-12 * max(1, abs(found[1]).max())


# --- Lemma: after one local step ----------------------------------------------------------------


@many
@given(states())
def test_lem_diverse_heads(state):
    B_star, heads, B, w, _, eta = state
    theta = B_star @ heads
    Bs, ws, rs = local(B, w, theta, 1, eta)
    Delta, a = gram_defect(B), B.T @ theta
    assert abs(ws[1] - (Delta @ w + a)).max() <= 1e-12
    G = B_star.T @ B
    C = cov(ws[1][..., 0])
    truth = cov(heads[..., 0])
    assert abs(C - G.T @ truth @ G).max() <= 1e-12
    delta, E = norm(Delta, 2), 1 - norm(B - B_star @ G, 2) ** 2
    assert eigvalsh(C)[0] >= max(0, eigvalsh(truth)[0]) * (E - delta) - 1e-12
    moved = eta * norm(rs[0][..., 0], axis=1) * norm(w)
    assert norm(Bs[1] - B, 2, axis=(1, 2)) == pytest.approx(moved, abs=1e-12)
    if np.linalg.cond(B) < 1e3:  # the identity needs full rank only
        best = np.linalg.solve(B.T @ B, a)
        assert abs(ws[1] - best - Delta @ (w - best)).max() <= 1e-12 * (1 + abs(best).max())


def test_lem_diverse_heads_needs_a_start_not_orthogonal():
    heads = np.vstack([np.eye(2), -np.eye(2)])[..., None]
    theta = np.eye(5)[:, :2] @ heads
    blind = local(np.eye(5)[:, 2:4], np.ones((2, 1)), theta, 1, 0.1)[1][1]
    assert abs(blind - blind[0]).max() < 1e-12  # diverse truth, but all heads alike
    seen = local(np.eye(5)[:, :2], np.ones((2, 1)), theta, 1, 0.1)[1][1]
    assert eigvalsh(cov(seen[..., 0]))[0] > 0.4


def test_lem_diverse_heads_needs_a_matched_body_to_be_near_the_best_head():
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((1, 5, 1))
    for size, near in ((1.0, True), (0.3, False), (3.0, False)):
        B = size * orthonormal(rng, 5, 2)
        best = np.linalg.solve(B.T @ B, B.T @ theta)
        head = local(B, np.zeros((2, 1)), theta, 1, 0.1)[1][1]
        assert (norm(head - best) < 0.5 * norm(best)) == near


# --- Corollary: when the prior shrinks ----------------------------------------------------------


def prior(ws, eta):
    P = np.eye(ws.shape[2])[None]
    for w in ws:
        P = P @ (np.eye(ws.shape[2]) - eta * w @ w.transpose(0, 2, 1))
    return P.mean(axis=0)


@many
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_cor_prior_shrinks(seed, k, num, tau, rank):
    """For any heads, whether or not a round would visit them."""
    rng = np.random.default_rng(seed)
    rank, eta = min(rank, k), rng.uniform(0.1, 1)
    ws = rng.standard_normal((tau, num, rank, 1))
    ws = orthonormal(rng, k, rank) @ (ws / norm(ws, axis=2, keepdims=True))
    ws *= np.sqrt(rng.uniform(0.05, 1.95, (tau, num, 1, 1)) / eta)
    s = svd(ws.reshape(-1, k), compute_uv=False)
    spans = len(s) == k and s[-1] > 1e-9
    assume(
        not spans or s[-1] > 0.3
    )  # a prior that hardly shrinks cannot be told from one that does not
    size = norm(prior(ws, eta), 2)
    assert size <= 1 + 1e-12
    assert (size < 1 - 1e-6) == spans
    if not spans:
        assert size == pytest.approx(1, abs=1e-12)


@many
@given(states())
def test_cor_prior_shrinks_in_rounds(state):
    B_star, heads, B, w, tau, eta = state
    _, ws, _ = local(B, w, B_star @ heads, tau, eta)
    assume((eta * norm(ws[:-1, ..., 0], axis=2) ** 2 < 2).all())
    size = norm(prior(ws[:-1], eta), 2)
    if tau == 1 and len(w) > 1:
        assert size == pytest.approx(1, abs=1e-12)
    Delta = norm(gram_defect(B), 2)
    E = 1 - norm(B - B_star @ (B_star.T @ B), 2) ** 2
    least = eigvalsh(cov(heads[..., 0]))[0]
    if tau >= 2 and least * (E - Delta) > 1e-3:
        assert size < 1


def test_cor_prior_shrinks_needs_short_heads():
    ws = np.sqrt(2.5) * np.eye(2)[:, None, :, None]  # they span, but eta |w|² = 2.5
    assert norm(prior(ws, 1.0), 2) == pytest.approx(1.5)


def test_cor_prior_shrinks_needs_spanning_heads():
    for line in (False, True):
        heads = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0 if line else 0.5]])[..., None]
        theta = np.eye(4)[:, :2] @ heads
        _, ws, _ = local(np.eye(4)[:, :2], np.zeros((2, 1)), theta, 5, 0.1)
        assert (norm(prior(ws[:-1], 0.1), 2) < 1 - 1e-3) != line


# --- Corollary: a run lives in 2k dimensions ----------------------------------------------------


@many
@given(states(), st.integers(1, 4))
def test_cor_run_span(state, rank):
    B_star, heads, B0, w0, tau, eta = state
    V = orthonormal(np.random.default_rng(0), B_star.shape[1], min(rank, B_star.shape[1]))
    theta = B_star @ (V @ (V.T @ heads))
    Psi = np.linalg.qr(np.column_stack([B_star, B0]))[0]
    small = np.linalg.qr(np.column_stack([B0, B_star @ V]))[0]
    (B, w), (b, v) = (B0, w0), (Psi.T @ B0, w0)
    rng = np.random.default_rng(1)
    for _ in range(3):
        cohort = rng.integers(0, len(theta), 2)  # any clients, any order
        Bs, ws, _ = local(B, w, theta[cohort], tau, eta)
        bs, vs, _ = local(b, v, Psi.T @ theta[cohort], tau, eta)
        assert abs(Psi @ bs - Bs).max() <= 1e-12 * (1 + abs(Bs).max())
        assert abs(vs - ws).max() <= 1e-12 * (1 + abs(ws).max())
        B, w, b, v = Bs[-1].mean(0), ws[-1].mean(0), bs[-1].mean(0), vs[-1].mean(0)
        assert abs(B - small @ (small.T @ B)).max() <= 1e-12 * (1 + abs(B).max())


def leaves_span(theta, sign=False):
    rng = np.random.default_rng(0)
    B_star, B = np.eye(9)[:, :2], rng.standard_normal((9, 2)) / 3
    w = np.ones((2, 1))
    Psi = np.linalg.qr(np.column_stack([B_star, B]))[0]
    r = B @ w - theta
    step = r @ w.T
    B = B - 0.1 * (np.sign(step) if sign else step)
    return abs(B - Psi @ (Psi.T @ B)).max()


def test_cor_run_span_needs_a_shared_truth_and_plain_gradient_steps():
    shared, stray = np.eye(9)[:, :1], np.eye(9)[:, 8:]
    assert leaves_span(shared) < 1e-12
    assert leaves_span(stray) > 1e-2
    assert leaves_span(shared, sign=True) > 1e-2  # coordinatewise steps, as Adam's


# --- Proposition: two steps are one step and FedRep ---------------------------------------------


def remainder(B, w, theta, eta):
    """Norm of what the one-step method and FedRep together do not explain of two local steps."""
    end = local(B, w, theta, 2, eta)[0][-1].mean(axis=0)
    one = -eta * (B @ w - theta.mean(axis=0)) @ w.T
    y = np.linalg.solve(B.T @ B, B.T @ theta)
    rep = -eta * ((B @ y - theta) @ y.transpose(0, 2, 1)).mean(axis=0)
    return norm(end - B - one - rep, 2)


@st.composite
def matched_states(draw):
    B_star, heads, B, w, _, _ = draw(states())
    delta = draw(st.sampled_from([0.0, 1e-3, 1 / 40]))
    Q, rng = np.linalg.qr(B)[0], np.random.default_rng(0)
    S = rng.standard_normal((B.shape[1],) * 2)
    values, vectors = np.linalg.eigh(S + S.T)
    values *= delta / abs(values).max()
    B = Q @ (vectors * np.sqrt(1 - values)) @ vectors.T
    w = w / max(norm(w), 1e-9) * draw(st.sampled_from([0.0, 0.5, 21 / 20]))
    return B, w, B_star @ heads, draw(st.sampled_from([1e-4, 1e-2, 0.3]))


@many
@given(matched_states())
def test_prop_fedrep(state):
    B, w, theta, eta = state
    delta = norm(gram_defect(B), 2)
    assert delta <= 1 / 40 + 1e-12
    left, right = remainder(B, w, theta, eta), eta * (4.3 * delta + 2.4 * eta)
    assert left <= right * (1 + 1e-9) + 1e-14
    assert remainder(np.linalg.qr(B)[0], 0 * w, theta, eta) <= 1e-13


def test_prop_fedrep_needs_a_matched_body():
    rng = np.random.default_rng(0)
    heads = np.vstack([np.eye(2), -np.eye(2)])[..., None]
    theta = orthonormal(rng, 6, 2) @ heads
    Q, w, eta = orthonormal(rng, 6, 2), np.zeros((2, 1)), 1e-3
    assert remainder(Q, w, theta, eta) <= 1e-13
    w = np.array([[1.05], [0.0]])  # as long as allowed, but delta = 8
    assert remainder(3 * Q, w, theta, eta) > eta * (4.3 * 8 + 2.4 * eta)


# --- Proposition: private orders keep the second moment -----------------------------------------


def late_number(heads, tau):
    mean = heads.mean(axis=0)
    spread = ((heads - mean) @ (heads - mean).transpose(0, 2, 1)).mean(axis=0)
    return eigvalsh((tau - 1) * spread + tau * mean @ mean.T)[0]


def second_moment(heads):
    return (heads @ heads.transpose(0, 2, 1)).mean(axis=0)


@many
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.integers(1, 8))
def test_prop_private_moment(seed, k, c, num, tau):
    rng = np.random.default_rng(seed)
    heads = rng.standard_normal((num, k, c)) + 2 * rng.standard_normal((1, k, c))
    heads /= norm(heads, axis=(1, 2)).max()
    turned = heads @ np.stack([orthonormal(rng, c, c) for _ in heads])
    ordered = np.stack([head[:, rng.permutation(c)] for head in heads])
    cyclic = np.concatenate([np.roll(heads, i, axis=2) for i in range(c)])
    lam = eigvalsh(second_moment(heads))[0]
    for private in (heads, turned, ordered, cyclic):
        assert abs(second_moment(private) - second_moment(heads)).max() <= 1e-12
        value = late_number(private, tau)
        assert (tau - 1) * lam - 1e-12 <= value <= tau * lam + 1e-12
        s = svd(private.mean(axis=0), compute_uv=False)
        sigma = s[k - 1] if len(s) >= k else 0
        assert late_number(private, 1) == pytest.approx(sigma**2, abs=1e-12)
    if k >= 2:
        assert abs(late_number(cyclic, 1)) <= 1e-12
    if c > 1:  # the library's number is the same
        tasks = linear.LinearTasks(orthonormal(rng, k + 1, k), ordered)
        found = (1 - linear.asymptotic_rate(tasks, local_steps=tau, lr=0.1)) * 100
        assert found == pytest.approx(late_number(ordered, tau), abs=1e-10)


def test_prop_private_moment_needs_orthogonal_changes():
    heads = np.random.default_rng(0).standard_normal((20, 2, 3))
    stretched = heads * np.array([0.5, 1.0, 1.5])
    assert abs(second_moment(stretched) - second_moment(heads)).max() > 0.1


def test_prop_private_moment_needs_two_steps():
    heads = np.repeat(np.random.default_rng(0).standard_normal((1, 2, 3)), 6, axis=0)
    private = np.stack([np.roll(head, i, axis=1) for i, head in enumerate(heads)])
    assert late_number(private, 2) >= 0.5 * late_number(heads, 2) > 0.1
    assert late_number(heads, 1) > 0.1
    assert late_number(private, 1) < 1e-12


# --- The identities, for matrix heads (Exercise 7.6) --------------------------------------------


@many
@given(states(outputs=True))
def test_prop_prior_signal_with_several_outputs(state):
    B_star, heads, B, w, tau, eta = state
    Bs, ws, _ = local(B, w, B_star @ heads, tau, eta)
    P = prior(ws[:-1], eta)
    out = svd(B_star, full_matrices=True)[0][:, B_star.shape[1] :]
    size = 1 + abs(Bs).max()
    end = Bs[-1].mean(axis=0)
    assert abs(out.T @ end - out.T @ B @ P).max() <= 1e-12 * size
    if heads.shape[2] > 1:
        options = dict(local_steps=tau, lr=np.sqrt(eta))
        tasks = linear.LinearTasks(B_star, heads)
        played = linear.one_round(tasks, B / eta**0.25, w * eta**0.25, **options)
        assert abs(played.P - P).max() <= 1e-11
        assert abs(played.B - B / eta**0.25 @ P - B_star @ played.S).max() <= 1e-11 * size
    if eta * norm(w, 2) ** 2 <= 2:
        assert norm(P, 2) <= norm(prior(ws[1:-1], eta), 2) + 1e-12 if tau > 1 else True


@many
@given(states(outputs=True))
def test_prop_balancedness_with_several_outputs(state):
    B_star, heads, B, w, tau, eta = state
    Bs, ws, rs = local(B, w, B_star @ heads, tau, eta)

    def gamma(B, w):
        BT, wT = np.swapaxes(B, -1, -2), np.swapaxes(w, -1, -2)
        return np.eye(B.shape[-1]) - BT @ B + eta * w @ wT

    size = 1 + abs(ws).max() ** 4
    u = np.diff(ws, axis=0)
    jumps = eta * u @ np.swapaxes(u, -1, -2)
    rw = rs @ np.swapaxes(ws[:-1], -1, -2)
    noise = eta**2 * np.swapaxes(rw, -1, -2) @ rw
    assert abs(np.diff(gamma(Bs, ws), axis=0) - jumps + noise).max() <= 1e-12 * size
    end, head = Bs[-1].mean(axis=0), ws[-1].mean(axis=0)
    b, v = Bs[-1] - end, ws[-1] - head
    V = (b.transpose(0, 2, 1) @ b).mean(axis=0)
    C = (v @ v.transpose(0, 2, 1)).mean(axis=0)
    right = gamma(B, w) + jumps.mean(axis=1).sum(axis=0) - eta * C + V
    right = right - noise.mean(axis=1).sum(axis=0)
    assert abs(gamma(end, head) - right).max() <= 1e-12 * size


@many
@given(states(outputs=True))
def test_prop_residuals_with_several_outputs(state):
    B_star, heads, B, w, tau, eta = state
    Bs, ws, rs = local(B, w, B_star @ heads, tau, eta)
    size = 1 + abs(ws).max() ** 3
    u = np.diff(ws, axis=0)
    for s in range(tau - 1):
        BT, wT, rT = (np.swapaxes(x[s], -1, -2) for x in (Bs, ws, rs))
        K = wT @ ws[s + 1]
        assert abs(rs[s + 1] - rs[s] + Bs[s] @ (BT @ rs[s]) + eta * rs[s] @ K).max() <= 1e-12 * size
        right = u[s] - BT @ (Bs[s] @ u[s]) - eta * u[s] @ K + eta * ws[s] @ (rT @ rs[s + 1])
        assert abs(u[s + 1] - right).max() <= 1e-12 * size
