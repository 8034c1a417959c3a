"""Fine-tuning on a few examples: exact expected risks."""

__all__ = ["fine_tuning_risk", "fine_tuning_threshold", "head_step_risk", "scratch_risk"]

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedlib._checks import (
    LARGEST_INT,
    check_array,
    check_int,
    check_number,
    check_positive,
    check_positive_int,
)
from fedlib.linear._arrays import EPS, floats, orthonormal, rescaled, scaled

Samples = Int[np.ndarray, "*n"] | int


def fine_tuning_risk(
    B: Float[np.ndarray, "d k"],
    theta: Float[np.ndarray, " d"],
    *,
    num_samples: Samples,
    noise_std: float,
) -> Float[np.ndarray, "*n"] | float:
    r"""Return the expected risk of a new client that fits a head on a fixed body by least squares.

    The client's examples are :math:`y=x^\top\theta+\sigma z`, x and z standard normal; the risk
    is :math:`|\hat\theta-\theta|^2`, the expected squared error on new inputs. With
    :math:`d_w=|(I-QQ^\top)\theta|`, for n > k + 1,

    .. math:: d_w^2+(\sigma^2+d_w^2)\frac k{n-k-1}.

    Args:
        B: the body, of rank k, shape (d, k).
        theta: the client's regression vector, shape (d,).
        num_samples: examples n, one number or many.
        noise_std: standard deviation σ of the noise.

    Returns:
        The risk for each n; infinite for k - 1 ≤ n ≤ k + 1 (unless there is no error to fit).
        For n < k - 1 it is that of the shortest interpolating head in orthonormal coordinates.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or shapes do not fit.

    Example:
        >>> B, theta = np.eye(20)[:, :2], np.eye(20)[0]
        >>> fine_tuning_risk(B, theta, num_samples=np.array([3, 13, 103]), noise_std=1.0)
        array([ inf, 0.2 , 0.02])

    Reference:
        Theorem 10.1 (thm-fine-tuning), part 1. Chapter 10.
    """
    Q = _basis(floats("B", B, (None, None)))
    client, k = _client(theta, len(Q), noise_std), Q.shape[1]
    inside = Q.T @ client.theta
    missed = _missed(client.theta, Q @ inside)
    return client.risk(
        lambda noise: missed + _least_squares(k, inside @ inside, noise + missed, num_samples),
        lambda noise: _least_squares(k, 0.0, noise, num_samples),
    )


def scratch_risk(
    d: int, theta: Float[np.ndarray, " d"], *, num_samples: Samples, noise_std: float
) -> Float[np.ndarray, "*n"] | float:
    r"""Return the expected risk of a new client that fits all d weights: no representation.

    Least squares if n > d + 1, the shortest interpolant if n < d - 1:

    .. math:: \sigma^2\frac d{n-d-1},\qquad
              \Big(1-\frac nd\Big)|\theta|^2+\sigma^2\frac n{d-n-1}.

    Args:
        d: inputs.
        theta: the client's regression vector, shape (d,).
        num_samples: examples n, one number or many.
        noise_std: standard deviation σ of the noise.

    Returns:
        The risk for each n; infinite for d - 1 ≤ n ≤ d + 1 (unless σ = 0).

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or shapes do not fit.

    Example:
        >>> scratch_risk(20, np.eye(20)[0], num_samples=np.array([10, 20, 31]), noise_std=1.0)
        array([1.61111111,        inf, 2.        ])

    Reference:
        Theorem 10.1 (thm-fine-tuning), part 2. Chapter 10.
    """
    d = check_positive_int("d", d)
    client = _client(theta, d, noise_std)
    signal = client.theta @ client.theta
    return client.risk(
        lambda noise: _least_squares(d, signal, noise, num_samples),
        lambda noise: _least_squares(d, 0.0, noise, num_samples),
    )


def head_step_risk(
    B: Float[np.ndarray, "d k"],
    w: Float[np.ndarray, " k"],
    theta: Float[np.ndarray, " d"],
    *,
    num_samples: Samples,
    noise_std: float,
    lr: float,
) -> Float[np.ndarray, "*n"] | float:
    r"""Return the expected risk after one gradient step on the head, on half the mean square.

    For a body with :math:`\alpha B^\top B=I` and step size :math:`\tilde\alpha\alpha` this is

    .. math:: d_w^2+\Big(1-2\tilde\alpha+\tilde\alpha^2\big(1+\tfrac{k+1}n\big)\Big)
              |v_0-v^\circ|^2+\tilde\alpha^2\tfrac kn(\sigma^2+d_w^2)

    in orthonormal coordinates v of the features; other bodies are covered as well.

    Args:
        B: the body, of rank k, shape (d, k).
        w: the head before the step, shape (k,).
        theta: the client's regression vector, shape (d,).
        num_samples: examples n, one number or many, at least 1.
        noise_std: standard deviation σ of the noise.
        lr: size of the step on w.

    Returns:
        The risk for each n.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or shapes do not fit.

    Example:
        >>> B, theta = np.eye(20)[:, :2], np.eye(20)[0]
        >>> risk = head_step_risk(B, np.zeros(2), theta, num_samples=100, noise_std=1.0, lr=1.0)
        >>> round(float(risk), 6)
        0.05

    Reference:
        Theorem 10.1 (thm-fine-tuning), part 3. Chapter 10.
    """
    lr = check_positive("lr", lr)
    B = floats("B", B, (None, None))
    Q = _basis(B)
    client, n = _client(theta, len(Q), noise_std), _counts(num_samples)
    w, w_exponent = scaled(floats("w", w, (Q.shape[1],)))
    B, B_exponent = scaled(B)
    size, lr_exponent = scaled(np.array(lr))
    R = Q.T @ B
    H = size * R @ R.T  # the step in orthonormal coordinates, but for a power of two
    begin, inside = R @ w, Q.T @ client.theta
    missed = _missed(client.theta, Q @ inside)
    # All lengths over one power of two, at which the largest of them, steps included, is ordinary.
    power, begun = lr_exponent + 2 * B_exponent, B_exponent + w_exponent
    parts = [(begin, begun), (client.theta, client.exponent)]
    parts += [(np.array([client.noise_std]), client.noise_exponent)]
    top = max([e for part, e in parts if part.any()], default=0) + max(power, 0)
    x = rescaled(begin, begun - top) - rescaled(inside, client.exponent - top)
    # The step of x, from the parts: where it is of ordinary size, x itself may be below all floats.
    y = rescaled(begin, begun - top + power) - rescaled(inside, client.exponent - top + power)
    loud = rescaled(missed, 2 * (client.exponent - top + power))
    loud = rescaled(client.noise_std**2, 2 * (client.noise_exponent - top + power)) + loud
    missed = rescaled(missed, 2 * (client.exponent - top))
    # E[Ĝ M Ĝ] = (1 + 1/n) M + tr(M)/n I for Ĝ = GᵀG/n with n standard normal rows.
    spread = np.sum((H @ y) ** 2) + np.sum(H**2) * (y @ y + loud)
    risk = missed + np.sum((x - H @ y) ** 2) + spread / n
    return rescaled(risk, 2 * top)


def fine_tuning_threshold(
    d: int, k: int, *, num_samples: Samples, noise_std: float
) -> Float[np.ndarray, "*n"] | float:
    r"""Return the error of a representation up to which it beats learning from scratch.

    For n > d + 1, fine-tuning a head has the smaller expected risk if and only if

    .. math:: d_w^2<\sigma^2\frac{d-k}{n-d-1}.

    Args:
        d: inputs.
        k: features, less than d.
        num_samples: examples n > d + 1, one number or many.
        noise_std: standard deviation σ of the noise.

    Returns:
        The squared error :math:`d_w^2` at which both are equally good, for each n.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, or shapes do not fit.

    Example:
        >>> round(float(fine_tuning_threshold(20, 2, num_samples=30, noise_std=0.5)), 9)
        0.5

    Reference:
        Corollary 10.1 (cor-fine-tuning-threshold). Chapter 10.
    """
    d = check_int("d", d, minimum=2)
    k = check_int("k", k, minimum=1, maximum=d - 1)
    n = _counts(num_samples)
    if np.any(n <= d + 1):
        raise ValueError(
            f"Invalid num_samples={np.min(n)}: from scratch, d={d} inputs need more. "
            f"Use num_samples >= {d + 2}."
        )
    std, exponent = scaled(np.array(check_number("noise_std", noise_std, least=0)))
    return rescaled(float(std) ** 2 * (d - k) / (n - d - 1), 2 * exponent)


def _least_squares(
    p: int, signal: float, noise: float, num_samples: Samples
) -> Float[np.ndarray, "*n"] | float:
    """Risk of (shortest) least squares with p standard normal inputs."""
    n = _counts(num_samples)
    unseen = np.maximum(0.0, 1 - n / p) * signal
    if noise == 0:
        return unseen + 0.0
    gap = np.where(n >= p, n - p - 1, p - n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = np.where(gap > 0, noise * np.minimum(n, p) / gap, np.inf)
    return unseen + fitted


def _basis(B: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns of B, refusing dependent ones."""
    Q = orthonormal(B)
    if Q.shape[1] < B.shape[1]:
        raise ValueError(
            f"Invalid B: its rank is {Q.shape[1]}. Use k={B.shape[1]} independent columns."
        )
    return Q


class _Client(NamedTuple):
    """A regression vector and a noise, each over a power of two if it is tiny or huge."""

    theta: np.ndarray
    exponent: int
    noise_std: float
    noise_exponent: int

    def risk(self, of_both: Callable, of_noise: Callable) -> np.ndarray | float:
        """Return a risk, which is linear in the noise's variance, from its two parts."""
        variance = self.noise_std**2
        if self.exponent == self.noise_exponent:
            return rescaled(of_both(variance), 2 * self.exponent)
        alone = rescaled(of_noise(variance), 2 * self.noise_exponent)
        return rescaled(of_both(0.0), 2 * self.exponent) + alone


def _client(theta: np.ndarray, d: int, noise_std: float) -> _Client:
    theta = floats("theta", theta, (d,))
    std, noise_exponent = scaled(np.array(check_number("noise_std", noise_std, least=0)))
    return _Client(*scaled(theta), float(std), noise_exponent)


def _missed(theta: np.ndarray, seen: np.ndarray) -> float:
    """Squared length of what a body misses; rounding does not count."""
    missed = float(np.sum((theta - seen) ** 2))
    return missed if missed > (len(theta) * EPS) ** 2 * (theta @ theta) else 0.0


def _counts(num_samples: Samples) -> np.ndarray:
    n = check_array("num_samples", num_samples, kinds="iu")
    if np.any(n < 1) or np.any(n > LARGEST_INT):
        shown = num_samples if n.ndim == 0 else f"{n.min()} … {n.max()}"
        raise ValueError(f"Invalid num_samples={shown}: counts. Use whole numbers >= 1.")
    return n.astype(np.int64)
