"""Fine-tuning on a few examples: exact expected risks."""

__all__ = ["fine_tuning_risk", "fine_tuning_threshold", "head_step_risk", "scratch_risk"]

import numpy as np
from jaxtyping import Float, Int

from fedlib._checks import check_positive, check_positive_int
from fedlib.linear._arrays import floats, orthonormal

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

    Example:
        >>> B, theta = np.eye(20)[:, :2], np.eye(20)[0]
        >>> fine_tuning_risk(B, theta, num_samples=np.array([3, 13, 103]), noise_std=1.0)
        array([ inf, 0.2 , 0.02])

    Reference:
        Theorem E(1). Chapter 10.
    """
    Q, theta, noise = _client(B, theta, noise_std)
    inside = Q.T @ theta
    missed = _missed(theta, Q @ inside)
    return missed + _least_squares(Q.shape[1], inside @ inside, noise + missed, num_samples)


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

    Example:
        >>> scratch_risk(20, np.eye(20)[0], num_samples=np.array([10, 20, 31]), noise_std=1.0)
        array([1.61111111,        inf, 2.        ])

    Reference:
        Theorem E(2). Chapter 10.
    """
    check_positive_int("d", d)
    _, theta, noise = _client(np.eye(d)[:, :1], theta, noise_std)
    return _least_squares(d, theta @ theta, noise, num_samples)


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

    For a body with :math:`\alpha B^\top B=I` and step size :math:`a\alpha` this is

    .. math:: d_w^2+\Big(1-2a+a^2\big(1+\tfrac{k+1}n\big)\Big)|v_0-v^\circ|^2
              +a^2\tfrac kn(\sigma^2+d_w^2)

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

    Example:
        >>> B, theta = np.eye(20)[:, :2], np.eye(20)[0]
        >>> risk = head_step_risk(B, np.zeros(2), theta, num_samples=100, noise_std=1.0, lr=1.0)
        >>> round(float(risk), 6)
        0.05

    Reference:
        Theorem E(3). Chapter 10.
    """
    check_positive("lr", lr)
    lr = float(lr)
    Q, theta, noise = _client(B, theta, noise_std)
    n = _counts(num_samples)
    w = floats("w", w, (Q.shape[1],))
    R = Q.T @ B
    H = lr * R @ R.T  # the step in orthonormal coordinates
    inside = Q.T @ theta
    missed = _missed(theta, Q @ inside)
    x = R @ w - inside
    # E[Ĝ M Ĝ] = (1 + 1/n) M + tr(M)/n I for Ĝ = GᵀG/n with n standard normal rows.
    quadratic = (1 + 1 / n) * np.sum((H @ x) ** 2) + np.sum(H**2) * (x @ x) / n
    return missed + x @ x - 2 * x @ H @ x + quadratic + np.sum(H**2) * (noise + missed) / n


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

    Example:
        >>> round(float(fine_tuning_threshold(20, 2, num_samples=30, noise_std=0.5)), 9)
        0.5

    Reference:
        Theorem E. Chapter 10.
    """
    if not 1 <= k < d:
        raise ValueError(f"Invalid k={k}: the body has d={d} inputs. Use 1 <= k < d.")
    n = _counts(num_samples)
    if np.any(n <= d + 1):
        raise ValueError(
            f"Invalid num_samples={np.min(n)}: from scratch, d={d} inputs need more. "
            f"Use num_samples >= {d + 2}."
        )
    return _variance(noise_std) * (d - k) / (n - d - 1)


def _least_squares(
    p: int, signal: float, noise: float, num_samples: Samples
) -> Float[np.ndarray, "*n"] | float:
    """Risk of (shortest) least squares with p standard normal inputs."""
    n = _counts(num_samples)
    unseen = np.maximum(0.0, 1 - n / p) * signal
    if noise == 0:
        return unseen + 0.0
    gap = np.where(n >= p, n - p - 1, p - n - 1)
    with np.errstate(divide="ignore"):
        fitted = np.where(gap > 0, noise * np.minimum(n, p) / gap, np.inf)
    return unseen + fitted


def _client(
    B: np.ndarray, theta: np.ndarray, noise_std: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Validate; return an orthonormal basis of B's columns, theta, and the noise's variance."""
    B = floats("B", B, (None, None))
    Q = orthonormal(B)
    if Q.shape[1] < B.shape[1]:
        raise ValueError(
            f"Invalid B: its rank is {Q.shape[1]}. Use k={B.shape[1]} independent columns."
        )
    return Q, floats("theta", theta, (len(B),)), _variance(noise_std)


def _variance(noise_std: float) -> float:
    if not (noise_std >= 0 and np.isfinite(noise_std)):
        raise ValueError(f"Invalid noise_std={noise_std}: negative. Use noise_std >= 0.")
    return float(noise_std) ** 2


def _missed(theta: np.ndarray, seen: np.ndarray) -> float:
    """Squared length of what a body misses; rounding does not count."""
    missed = float(np.sum((theta - seen) ** 2))
    return missed if missed > (len(theta) * np.finfo(float).eps) ** 2 * (theta @ theta) else 0.0


def _counts(num_samples: Samples) -> np.ndarray:
    n = np.asarray(num_samples)
    if n.dtype.kind not in "iu" or np.any(n < 1):
        raise ValueError(f"Invalid num_samples={num_samples}: counts. Use whole numbers >= 1.")
    return n.astype(np.int64)
