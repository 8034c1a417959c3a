"""Search for the worst case of an inequality: many random instances at once, each then improved.

An instance is a row of numbers, which ``build`` turns into a state that meets all assumptions;
``claims`` returns left over right sides, one array per claim. Chain i climbs claim i modulo their
number: it keeps a random step whenever the ratio of that claim grows. All chains move together,
so that a hundred thousand instances cost seconds.
"""

import json
import os
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.linalg import norm

OMEGA = 21 / 20


def climb(build, size, claims, *, chains, steps, rng):
    """Return the worst ratio of each claim over all instances tried, chains * (steps + 1)."""
    x = rng.standard_normal((chains, size))
    ratios = claims(build(x))
    names, worst = list(ratios), {name: float(r.max()) for name, r in ratios.items()}
    mine = np.arange(chains) % len(names)
    best = np.array([ratios[names[j]][i] for i, j in enumerate(mine)])
    for step in range(steps):
        few = rng.random((chains, size)) < rng.choice([0.1, 0.3, 1.0], (chains, 1))
        scale = 2.0 ** -rng.uniform(0, 2 + 10 * step / steps, (chains, 1))
        tried = x + scale * few * rng.standard_normal((chains, size))
        ratios = claims(build(tried))
        for name, r in ratios.items():
            worst[name] = max(worst[name], float(r.max()))
        now = np.array([ratios[names[j]][i] for i, j in enumerate(mine)])
        better = now > best
        x[better], best[better] = tried[better], now[better]
    return worst


class Row:
    """Reads arrays and shares from the columns of x, one after the other."""

    def __init__(self, x):
        self.x, self.at = x, 0

    def array(self, *shape):
        n = int(np.prod(shape))
        block = self.x[:, self.at : self.at + n].reshape(-1, *shape)
        self.at += n
        return block

    def share(self):
        """Numbers in [0, 1], both ends taken easily."""
        return np.clip(0.5 + self.array(1)[:, 0], 0, 1)

    def ball(self, radius, *shape):
        """Arrays of Frobenius norm at most ``radius``."""
        A = self.array(*shape)
        return A * (radius * self.share() / frobenius(A))[(...,) + (None,) * len(shape)]

    def body(self, d, k, delta):
        """Bodies with any column space and a defect of norm at most delta (one per instance)."""
        Q = np.linalg.qr(self.array(d, k))[0]
        return with_defect(Q, self.array(k, k), delta * self.share())


def with_defect(Q, S, size):
    S = S + np.swapaxes(S, -1, -2)
    S = S * (size / norm(S, 2, axis=(-2, -1)))[..., None, None]
    values, vectors = np.linalg.eigh(np.eye(S.shape[-1]) - S)
    return Q @ (vectors * np.sqrt(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def frobenius(A):
    return np.sqrt((A**2).reshape(len(A), -1).sum(axis=1))


def size(A):
    """Frobenius norms over the last two axes."""
    return np.sqrt((A**2).sum(axis=(-2, -1)))


def spectral(A):
    return norm(A, 2, axis=(-2, -1))


def T(A):
    return np.swapaxes(A, -1, -2)


def defect(B):
    return np.eye(B.shape[-1]) - T(B) @ B


def missed(B, Theta):
    """Frobenius norm of the part of Theta outside the columns of B."""
    Q = np.linalg.qr(B)[0]
    return size(Theta - Q @ (T(Q) @ Theta))


def steps(B, W, Theta, tau, eta, errors=None):
    """Local steps of many clients in normalised variables; lists over steps of B, W and R.

    Shapes (..., d, k), (..., k, c), (..., d, c); ``eta`` of shape (...); ``errors`` a list of what
    is added to the gradients R, or a function that makes it of B, W and R.
    """
    Bs, Ws, Rs = [B], [W], []
    for s in range(tau):
        R = Bs[-1] @ Ws[-1] - Theta
        if errors is None:
            G = R
        else:
            G = R + (errors(Bs[-1], Ws[-1], R) if callable(errors) else errors[s])
        Rs.append(R)
        B, W = Bs[-1] - eta[..., None, None] * G @ T(Ws[-1]), Ws[-1] - T(Bs[-1]) @ G
        Bs.append(B)
        Ws.append(W)
    return Bs, Ws, Rs


def least(A):
    return np.linalg.eigvalsh(A)[..., 0]


def covariance(W):
    """Covariance over clients, axis 1, of k × c matrices: shape (instances, k, k)."""
    X = W - W.mean(axis=1, keepdims=True)
    return (X @ T(X)).mean(axis=1)


# --- One client ---------------------------------------------------------------------------------


def client(d, k, c, tau, *, delta=1 / 40, most=1 / 480, walk=0.05, length=1.0):
    """Build states of Lemma 7.1 for heads of shape (k, c); also how many numbers each takes."""

    def build(x):
        row = Row(x)
        B, Theta, W = row.body(d, k, delta), row.ball(length, d, c), row.ball(OMEGA, k, c)
        eta = min(most, walk / (tau - 1)) * np.maximum(row.share(), 0.01)  # rounding below
        return B, W, Theta, tau, eta

    return build, d * k + k * k + 1 + d * c + 1 + k * c + 1 + 1


def client_claims(state):
    """Left over right sides of Lemma 7.1, (a) to (g)."""
    B, W, Theta, tau, eta = state
    Bs, Ws, Rs = steps(B, W, Theta, tau, eta)
    Delta, A, p, eps = defect(B), T(B) @ Theta, missed(B, Theta), eta * (tau - 1)
    delta, p2 = spectral(Delta), p**2
    u = [size(after - before) for before, after in pairwise(Ws)]
    r = [size(R) for R in Rs]
    first = 2.1 * delta + 2.316 * eta + 1.058 * eta * p2
    late = 2.19 * delta**2 + 0.47 * eta + 1.101 * eps * p2
    zeta = 2.9 * eta + 2.19 * delta**2 + 1.101 * eps * p2
    later = sum(u[2:], 0 * p)
    E = [size(V - A - Delta @ A - Delta @ Delta @ W) for V in Ws[2:]]
    everywhere = [missed(b, Theta) for b in Bs]
    return {
        "a": np.max([size(V) for V in Ws], axis=0) / OMEGA,
        "b": np.max([spectral(defect(b) - Delta) for b in Bs], axis=0) / (5.6 * eta),
        "c": np.max(everywhere, axis=0) / np.maximum(1.0025 * p, 1e-6),
        "d0": u[0] / 2.09,
        "d1": u[1] / np.minimum(first, 2.09 * delta + 3.5 * eta),
        "ds": np.max([0 * p, *u[2:]], axis=0) / 0.0047,
        "e": sum(u[1:]) / (2.186 * delta + 2.411 * eta + 1.101 * eps * p2),
        "e0": r[0] ** 2 / (4.2564 + p2),
        "er": sum(r[1:]) / (1.0025 * (tau - 1) * p + 0.117),
        "f": np.max([0 * p, *E], axis=0) / zeta,
        "g": later / late,
        "gr": sum(x**2 for x in r[1:]) / (1.0051 * (tau - 1) * p2 + 0.0072),
    }


def noisy_client(d, k, c, tau, *, largest=1 / 400, **bounds):
    """States of Lemma 9.1: those of Lemma 7.1, and an error of every gradient."""
    build_exact, count = client(d, k, c, tau, **bounds)

    def build(x):
        state = build_exact(x[:, :count])
        row = Row(x[:, count:])
        nu = largest * np.maximum(row.share(), 1e-3)
        errors = [row.array(d, c) for _ in range(tau)]
        return state, nu, [nu[:, None, None] * q / size(q)[:, None, None] for q in errors]

    return build, count + 1 + tau * d * c


def noisy_client_claims(state):
    """Left over right sides of Lemma 9.1."""
    exact, nu, errors = state
    tau, eta = exact[3:]
    Bs, Ws, Rs = steps(*exact)
    Bn, Wn, Rn = steps(*exact, errors)
    s = np.arange(1, tau + 1)[:, None]
    x = np.array([size(a - b) for a, b in zip(Ws, Wn, strict=True)])[1:]
    b = np.array([spectral(a - b) for a, b in zip(Bs, Bn, strict=True)])[1:]
    g = np.array([size(R + q - R0) for R, q, R0 in zip(Rn, errors, Rs, strict=True)])[1:]
    longest = np.max([size(V) for V in Wn], axis=0)
    return {
        "first head": x[0] / (1.01243 * nu),
        "heads": x.max(axis=0) / (1.6 * nu),
        "bodies": (b / (4.8 * eta * s * nu)).max(axis=0),
        "gradients": g.max(axis=0) / (2.9 * nu),
        "length": longest / OMEGA,
    }


# --- A round after a round ----------------------------------------------------------------------


def rounds(d, k, c, tau, clients, *, largest=0.0, same=True, most=1 / 480, walk=0.05):
    """Two rounds in a row, with errors of norm ``largest`` at most in every gradient."""

    def build(x):
        row = Row(x)
        B, W = row.body(d, k, 0.0249), row.ball(OMEGA, k, c)
        pools = [row.array(clients, k, c) for _ in range(1 if same else 2)]
        longest = np.max([size(pool).max(axis=1) for pool in pools], axis=0)
        pools = [pool / longest[:, None, None, None] for pool in pools]
        eta = min(most, walk / (tau - 1)) * np.maximum(row.share(), 0.01)
        nu = largest * row.share()
        errors = [[row.array(clients, d, c) for _ in range(tau)] for _ in range(2)]
        for one in errors:
            one[:] = [nu[:, None, None, None] * q / size(q)[..., None, None] for q in one]
        return B, W, pools, tau, eta, nu, errors

    numbers = d * k + k * k + 1 + k * c + 1 + (1 if same else 2) * clients * k * c + 1 + 1
    return build, numbers + 2 * tau * clients * d * c


def played(B, W, heads, tau, eta, errors=None):
    """A round from (B, W), all clients: lists over steps, shape (instances, clients, ...)."""
    d = B.shape[-2]
    Theta = np.zeros((*heads.shape[:2], d, heads.shape[-1]))
    Theta[:, :, : heads.shape[2]] = heads  # the truth: the first k coordinates
    many = (len(B), heads.shape[1])
    B = np.broadcast_to(B[:, None], (*many, *B.shape[1:]))
    W = np.broadcast_to(W[:, None], (*many, *W.shape[1:]))
    return steps(B, W, Theta, tau, np.broadcast_to(eta[:, None], many), errors), Theta


def gamma(B, W, eta):
    return defect(B) + eta[:, None, None] * W @ T(W)


def distance(B, k):
    Q = np.linalg.qr(B)[0]
    E = np.eye(B.shape[-2])[:, :k]
    return spectral(E - Q @ (T(Q) @ E))


def round_claims(state, noisy=False):
    """Lemma 7.2 in the second of two rounds: growth of Gamma, and the common step."""
    B, W, pools, tau, eta, nu, errors = state
    k = W.shape[-2]
    first, second = (pools * 2)[:2]
    errors = errors if noisy else [None, None]
    (Bs, Ws, _), _ = played(B, W, first, tau, eta, errors[0])
    B1, W1 = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1)
    (Bs, Ws, _), Theta = played(B1, W1, second, tau, eta, errors[1])
    B2, W2 = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1)
    A = T(B1)[:, None] @ Theta
    lam = np.maximum(0, least(covariance(A)))
    delta = np.maximum(spectral(defect(B)), spectral(defect(B1)))
    beta = size(first.mean(axis=1) - second.mean(axis=1))
    eps, now, before = eta * (tau - 1), distance(B1, k), distance(B, k)
    common = size(defect(B1) @ W1 + A.mean(axis=1) - W1)
    bound = 1.0125 * beta + 11.2 * eta + 4.34 * delta**2 + 2.27 * eps * before
    grown = spectral(gamma(B2, W2, eta)) - (1 - 2 * eta * lam) * spectral(gamma(B1, W1, eta))
    forcing = 15 * eta**2 + 9.5 * eta * delta**2 + 2.06 * eta * beta**2
    forcing += eps**2 * (4.69 * now**2 + 0.07 * before**2)
    if noisy:
        bound = bound + 2.4 * nu
        forcing = forcing + eta * (7.2 * nu + 36.3 * (tau - 1) * nu**2)
    inside = delta <= 1 / 40
    return {
        "growth": np.where(inside, grown / forcing, 0.0),
        "common step": np.where(inside, common / bound, 0.0),
    }


def prior(Ws, eta):
    """mean over clients of the product of I - eta W Wᵀ over the steps."""
    P = np.eye(Ws[0].shape[-2])
    for V in Ws:
        P = P @ (np.eye(V.shape[-2]) - eta[:, None, None, None] * V @ T(V))
    return P.mean(axis=1)


def contractions(d, k, c, tau, clients, *, largest=0.0, delta=1 / 40):
    """States of Lemma 7.3, at the largest steps allowed; errors as a multiple of rho²."""

    def build(x):
        row = Row(x)
        heads = row.array(clients, k, c)
        heads = heads / size(heads).max(axis=1)[:, None, None, None]
        mu2 = np.maximum(least(covariance(heads)), 1e-9)
        Q = np.linalg.qr(row.array(d, k))[0]
        E = np.maximum(np.linalg.svd(Q[:, :k], compute_uv=False)[:, -1] ** 2, 1e-9)
        rough = 0.97 * E * mu2
        B = with_defect(Q, row.array(k, k), delta * rough * row.share())
        E = np.maximum(1 - spectral(B[:, k:]) ** 2, 1e-12)
        rho = E * mu2
        eta = np.minimum(rho**2 / 480, rho / 20 / (tau - 1)) * np.maximum(row.share(), 0.01)
        W = row.ball(OMEGA, k, c)
        nu = largest * rho**2
        errors = [row.array(clients, d, c) for _ in range(tau)]
        errors = [nu[:, None, None, None] * q / size(q)[..., None, None] for q in errors]
        return B, W, heads, tau, eta, E, mu2, errors

    numbers = clients * k * c + d * k + k * k + 1 + 1 + k * c + 1
    return build, numbers + tau * clients * d * c


def contraction_claims(state, factor=0.75, noisy=False):
    """Lemma 7.3: diversity seen through B, and promised over found contraction."""
    B, W, heads, tau, eta, E, mu2, errors = state
    (_, Ws, _), Theta = played(B, W, heads, tau, eta, errors if noisy else None)
    seen = least(covariance(T(B)[:, None] @ Theta))
    lost = 1 - spectral(prior(Ws[:-1], eta))
    ok = (E * mu2 > 0.01) & (spectral(defect(B)) <= E * mu2 / 40 * (1 + 1e-9))
    ratio = factor * eta * (tau - 1) * mu2 * E / np.maximum(lost, 1e-300)
    return {
        "diversity": np.where(ok, 0.975 * mu2 * E / seen, 0.0),
        "contraction": np.where(ok, ratio, 0.0),
    }


# --- Runs ---------------------------------------------------------------------------------------


def ends(S):
    """Least and largest eigenvalues of symmetric matrices, in closed form for at most two rows."""
    if S.shape[-1] == 1:
        return S[..., 0, 0], S[..., 0, 0]
    if S.shape[-1] == 2:
        middle = (S[..., 0, 0] + S[..., 1, 1]) / 2
        half = np.hypot((S[..., 0, 0] - S[..., 1, 1]) / 2, S[..., 0, 1])
        return middle - half, middle + half
    values = np.linalg.eigvalsh(S)
    return values[..., 0], values[..., -1]


def longest(A):
    """Spectral norms of tall matrices."""
    return np.sqrt(ends(T(A) @ A)[1])


def theorem_step(E, mu2, tau):
    """The largest step of Theorem 7.1 for a mean head at rest, and its bound on the defect."""
    rho, force = E * mu2, 12 + 5 * (tau - 1) * E * np.log(1 / E)
    eta = np.minimum(rho**2 / 40 / force, rho / 20 / (tau - 1))
    return eta, eta * force / rho


def corollary_step(E, mu2, tau):
    """The step of Corollary 7.1; the theorem bounds the defect."""
    rho = E * mu2
    eta = rho**2 / 280 / tau
    return eta, eta * (12 + 5 * (tau - 1) * E * np.log(1 / E)) / rho


def linear_step(E, mu2, tau):
    """The largest step of the conjecture on linear conditions, and its bound on the defect."""
    L = np.log(1 / E)
    push = 20.6 + 12.5 * L / (tau - 1) + 3.7 * (tau - 1) * L
    return np.minimum(E * mu2 / 40 / push, E * mu2 / 20 / (tau - 1)), E / 40


def starts(d, k, seen, c, tau, clients, *, step=theorem_step, orders=False):
    """Matched starts of k features for a truth of ``seen``, at the largest steps of ``step``.

    With ``orders`` all clients hold one matrix whose rows sum to zero, in all cyclic orders.
    """

    def build(x):
        row = Row(x)
        heads = row.array(1 if orders else clients, seen, c)
        if orders:
            heads = heads - heads.mean(axis=-1, keepdims=True)
            heads = np.concatenate([np.roll(heads, i, axis=-1) for i in range(c)], axis=1)
        heads = heads / size(heads).max(axis=1)[:, None, None, None]
        mu2 = np.maximum(least(covariance(heads)), 1e-9)
        near = 3 * row.share()[:, None, None]
        Q = np.linalg.qr(row.array(d, k) + near * np.eye(d, k))[0]
        N = T(np.linalg.svd(Q[:, :seen], full_matrices=False)[2])
        E = np.clip(1 - spectral(Q[:, seen:] @ N) ** 2, 1e-6, 1 - 1e-9)
        return Q, N, heads, tau, *step(E, mu2, tau), E, mu2

    return build, (1 if orders else clients) * seen * c + 1 + d * k


def run_claims(state, num_rounds=40):
    """Left over right sides of what Theorem 7.1 says along a run, for the features that see.

    For a wide model also what Theorem 7.3 says: a change of the others, over 1e-12.
    """
    Q, N, heads, tau, eta, allowed, E0, mu2 = state
    n, _, k = Q.shape
    seen, c = heads.shape[2:]
    B, W, blind = Q, np.zeros((n, k, c)), np.eye(k) - N @ T(N)
    eps = eta * (tau - 1)
    D = D0 = np.sqrt(1 - E0)
    worst = dict.fromkeys(("defect", "head", "inner", "contraction", "bound", "distance"), 0 * D)
    worst |= {"frozen": 0 * D} if k > seen else {}

    def keep(name, ratio):
        worst[name] = np.maximum(worst[name], ratio)

    for t in range(1, num_rounds + 1):
        (Bs, Ws, _), _ = played(B, W, heads, tau, eta)
        B, W, E = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1), 1 - D**2
        if k > seen:
            moved = np.maximum(size((B - Q) @ blind), size(blind @ W))
            keep("frozen", np.maximum(moved, size(T(Q @ blind) @ B @ N)) / 1e-12)
        b = B @ N
        before, D = D, longest(b[:, seen:])
        lost = np.maximum(1 - D / np.maximum(before, 1e-300), 1e-300)
        keep("contraction", np.where(before > 1e-6, 0.75 * eps * mu2 * E / lost, 0.0))
        keep("defect", np.abs(ends(defect(b))).max(axis=0) / allowed)
        keep("head", size(W) / OMEGA)
        inner = np.maximum(ends(T(b[:, :seen]) @ b[:, :seen])[0], 1e-12)
        keep("inner", 39 / 40 * (1 - D**2) / inner)
        slow = D0 * (1 - 0.75 * eps * E0 * mu2) ** t
        bound = np.minimum(slow, D0 / np.sqrt(E0) * (1 - 0.68 * eps * mu2) ** t)
        keep("bound", D / np.maximum(bound, 1e-9))
    keep("distance", np.where(D > 1e-6, distance(B, seen) / np.maximum(1.013 * D, 1e-9), 0))
    ok = (E0 * mu2 > 0.01) & (E0 < 1 - 1e-6)
    return {name: np.where(ok, ratio, 0.0) for name, ratio in worst.items()}


def drifting(d, k, c, tau, clients):
    """Two rounds in a row whose cohorts differ little: states of Lemma 8.1."""
    build_rounds, count = rounds(d, k, c, tau, clients, same=False)

    def build(x):
        B, W, (first, second), tau, eta, nu, errors = build_rounds(x[:, :count])
        near = 0.3 * Row(x[:, count:]).share()[:, None, None, None]
        return B, W, [first, first + near * (second - first)], tau, eta, nu, errors

    return build, count + 1


def drift_claims(state, charged=1.0):
    """Lemma 8.1 in the second of two rounds: what exceeds chi I, and what is below zero."""
    B, W, (first, second), tau, eta, _, _ = state
    k = W.shape[-2]
    (Bs, Ws, _), _ = played(B, W, first, tau, eta)
    B1, W1 = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1)
    (Bs, Ws, _), Theta = played(B1, W1, second, tau, eta)
    B2, W2 = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1)
    move, C = first.mean(axis=1) - second.mean(axis=1), covariance(second)
    C = C + 1e-12 * np.eye(k)
    chi = np.linalg.eigvals(np.linalg.solve(C, move @ T(move))).real.max(axis=-1)
    lam = np.maximum(0, least(covariance(T(B1)[:, None] @ Theta)))
    delta = np.maximum(spectral(defect(B)), spectral(defect(B1)))
    eps, now, before = eta * (tau - 1), distance(B1, k), distance(B, k)
    forcing = 15 * eta**2 + 9.5 * eta * delta**2
    forcing += eps**2 * (4.69 * now**2 + 0.07 * before**2)
    inside = (delta <= 1 / 40) & (chi <= 1 / 48)
    ratios = {}
    for name, sign, less in (("above", 1, charged * chi), ("below", -1, 0 * chi)):
        old, new = (
            np.maximum(0, np.linalg.eigvalsh(sign * gamma(b, w, eta))[:, -1] - less)
            for b, w in ((B1, W1), (B2, W2))
        )
        ratios[name] = np.where(inside, (new - (1 - 2 * eta * lam) * old) / forcing, 0.0)
    return ratios


def erring(d, k, c, tau, clients):
    """Matched starts at the largest steps and errors of Theorem 9.2, and how gradients err.

    An error is of the largest length. Its direction adds up one that every client keeps, a linear
    map of the residual, and the one that pushes the body outwards.
    """
    build_start, count = starts(d, k, k, c, tau, clients)

    def build(x):
        Q, _, heads, _, _, _, E0, mu2 = build_start(x[:, :count])
        row = Row(x[:, count:])
        D0 = np.sqrt(1 - E0)
        top = np.maximum(D0, 1 / 90)
        rho = (1 - top**2) * mu2
        eta = np.minimum(rho**2 / 80 / (12 + 9 * (tau - 1) * top**2), rho / 20 / (tau - 1))
        nu = np.minimum(rho**2 / 400, np.sqrt(rho**3 / 1e4 / (tau - 1)))
        kept, turn = row.array(clients, d, c), row.array(d, d)[:, None]
        out = 10 * row.share()[:, None, None, None]

        def errors(B, W, R):
            outwards = np.concatenate([0 * B[..., :k, :], B[..., k:, :]], axis=-2) @ W
            q = kept + turn @ R / np.maximum(size(R), 1e-12)[..., None, None]
            q = q - out * outwards / np.maximum(size(outwards), 1e-12)[..., None, None]
            return nu[:, None, None, None] * q / size(q)[..., None, None]

        return Q, heads, tau, eta, D0, top, rho, nu, errors

    return build, count + clients * d * c + d * d + 1


def erring_claims(state, num_rounds=40):
    """Left over right sides of Theorem 9.2 along a run."""
    B, heads, tau, eta, D0, top, rho, nu, errors = state
    k, c = heads.shape[2:]
    W, eps = np.zeros((len(B), k, c)), eta * (tau - 1)
    phi = 1.05 / 0.74 * tau / (tau - 1) * nu / rho
    worst = dict.fromkeys(("defect", "head", "outside", "bound"), 0 * D0)
    for t in range(1, num_rounds + 1):
        (Bs, Ws, _), _ = played(B, W, heads, tau, eta, errors)
        B, W = Bs[-1].mean(axis=1), Ws[-1].mean(axis=1)
        D = longest(B[:, k:])
        now = {
            "defect": np.abs(ends(defect(B))).max(axis=0) / (rho / 40),
            "head": size(W) / OMEGA,
            "outside": D / top,
            "bound": D / ((1 - 0.74 * eps * rho) ** t * D0 + phi),
        }
        worst = {name: np.maximum(worst[name], now[name]) for name in worst}
    ok = (rho > 0.01) & (top < 1 - 1e-6)
    return {name: np.where(ok, ratio, 0.0) for name, ratio in worst.items()}


def samples(d, n):
    """Data of one client, and a residual: states of cor-samples."""

    def build(x):
        row = Row(x)
        r, X, z = row.ball(2.3, d), row.array(n, d), row.array(n)
        return r, X, z, 2 * row.share()

    return build, d + 1 + n * d + n + 1


def sample_claims(state):
    """The gradient error over what the corollary allows for the least t of which its events hold.

    The events: singular values of X, the length of z, and that of X'z.
    """
    r, X, z, sigma = state
    n, d = X.shape[1:]
    values, length = np.linalg.svd(X, compute_uv=False), size(z[:, None])
    Xz = (T(X) @ z[..., None])[..., 0]
    low = values[:, -1] if n >= d else 0 * length
    t = np.max(
        [
            values[:, 0] - n**0.5 - d**0.5,
            n**0.5 - d**0.5 - low,
            length - n**0.5,
            size(Xz[:, None]) / length - d**0.5,
            0 * length,
        ],
        axis=0,
    )
    s = (d**0.5 + t) / n**0.5
    nu = 2.3 * (2 * s + s * s) + sigma * (1 + t / n**0.5) * s
    q = (T(X) @ (X @ r[..., None]))[..., 0] / n - r - sigma[:, None] * Xz / n
    return {"error": size(q[:, None]) / nu}


# --- The whole search ---------------------------------------------------------------------------

SHAPES = [(2, 1, 1, 2), (3, 1, 2, 3), (4, 2, 1, 3), (5, 2, 3, 4), (6, 3, 2, 3)]
"""Inputs d, features k, outputs c, local steps tau."""
WALKS = [*SHAPES, (4, 2, 1, 40)]
"""With long walks as well: they let residuals act."""
SEEING = [(3, 2, 1, 1, 2), (4, 3, 1, 2, 3), (5, 3, 2, 1, 3), (6, 4, 2, 3, 2)]
"""d, features k, those of the truth, outputs, local steps."""
ORDERED = [(3, 1, 1, 2, 3), (3, 1, 1, 3, 2), (4, 2, 2, 3, 3), (4, 2, 2, 3, 10)]
FEW = [(2, 1, 1, 2), (3, 1, 2, 10), (4, 2, 1, 3), (4, 2, 2, 5)]


def searches():
    """What is searched: a statement's label, how much, and pairs of states and claims."""
    noisy = partial(round_claims, noisy=True)
    weaker = partial(contraction_claims, factor=0.74, noisy=True)
    narrow = [(d, k, k, c, tau) for d, k, c, tau in FEW]

    def run(shapes, **options):
        return [(starts(*shape, 4, **options), run_claims) for shape in shapes]

    few, many = dict(chains=1000, steps=25), dict(chains=400, steps=50)
    return {
        "lem-local": (many, [(client(*s), client_claims) for s in SHAPES]),
        "lem-gamma": (
            many,
            [(rounds(*s, 4, same=same), round_claims) for s in WALKS for same in (True, False)],
        ),
        "lem-contraction": (many, [(contractions(*s, 4), contraction_claims) for s in SHAPES]),
        "thm-outputs": (few, run(narrow)),
        "cor-representation": (few, run(narrow, step=corollary_step)),
        "cor-orders": (few, run(ORDERED, orders=True)),
        "thm-width": (few, run(SEEING)),
        "lem-aligned-drift": (many, [(drifting(*s, 4), drift_claims) for s in WALKS]),
        "lem-noisy-client": (many, [(noisy_client(*s), noisy_client_claims) for s in SHAPES]),
        "thm-gradient-errors, a round": (
            many,
            [(rounds(*s, 4, largest=1 / 400, most=1 / 960), noisy) for s in SHAPES]
            + [(contractions(*s, 4, largest=1 / 400), weaker) for s in SHAPES],
        ),
        "thm-gradient-errors, runs": (few, [(erring(*s, 4), erring_claims) for s in FEW]),
        "cor-samples": (
            dict(chains=1000, steps=50),
            [(samples(*s), sample_claims) for s in ((1, 2), (2, 3), (3, 2))],
        ),
        "conj-linear": (few, run(narrow, step=linear_step)),
        "conj-linear, long runs": (
            dict(chains=300, steps=1),
            [
                (starts(*s, 4, step=linear_step), partial(run_claims, num_rounds=3000))
                for s in narrow
            ],
        ),
    }


STORED = Path(__file__).parent / "searched.json"


def row(found):
    """How the appendix shows what was found: instances, and ratios, rounded down."""
    worst = ", ".join(f"{claim} {int(1000 * r) / 1000:.3f}" for claim, r in found["worst"].items())
    return f"{found['instances']:,} | {worst}"


def main(names):
    """Search for all statements, or those named; store the worst ratios."""
    rng, found = np.random.default_rng(0), json.loads(STORED.read_text()) if names else {}
    for name, (much, pairs) in searches().items():
        if names and name not in names:
            continue
        worst = {}
        for built, claims in pairs:
            for claim, ratio in climb(*built, claims, rng=rng, **much).items():
                worst[claim] = max(worst.get(claim, 0.0), ratio)
        tried = much["chains"] * (much["steps"] + 1) * len(pairs)
        worst = {claim: round(ratio, 4) for claim, ratio in worst.items()}
        found[name] = {"instances": tried, "worst": worst}
        print(name, found[name], flush=True)
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.nice(10)
    main(sys.argv[1:])
