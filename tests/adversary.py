"""Search for the worst case of an inequality: many random instances at once, each then improved.

An instance is a row of numbers, which ``build`` turns into a state that meets all assumptions;
``claims`` returns left over right sides, one array per claim. Chain i climbs claim i modulo their
number: it keeps a random step whenever the ratio of that claim grows. All chains move together,
so that a hundred thousand instances cost seconds.
"""

from itertools import pairwise

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
    is added to the gradients R.
    """
    Bs, Ws, Rs = [B], [W], []
    for s in range(tau):
        R = Bs[-1] @ Ws[-1] - Theta
        G = R if errors is None else R + errors[s]
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
    """States of Lemma 9.2: those of Lemma 7.1, and an error of every gradient."""
    build_exact, count = client(d, k, c, tau, **bounds)

    def build(x):
        state = build_exact(x[:, :count])
        row = Row(x[:, count:])
        nu = largest * np.maximum(row.share(), 1e-3)
        errors = [row.array(d, c) for _ in range(tau)]
        return state, nu, [nu[:, None, None] * q / size(q)[:, None, None] for q in errors]

    return build, count + 1 + tau * d * c


def noisy_client_claims(state):
    """Left over right sides of Lemma 9.2."""
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
