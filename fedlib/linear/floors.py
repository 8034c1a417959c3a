"""Distances below which a method can never get."""

__all__ = ["one_step_floor", "span_floor", "worst_case_tasks"]

import math

import numpy as np
from jaxtyping import Float

from fedlib._checks import check_number
from fedlib.linear._arrays import EPS, floats, norm2, orthonormal, scaled
from fedlib.linear.tasks import LinearTasks, check_tasks


def one_step_floor(tasks: LinearTasks, B0: Float[np.ndarray, "d k"]) -> float:
    r"""Distance that one local step per round never beats, :math:`\|(I-P_{\mathcal W})B_*\|`.

    :math:`\mathcal W` is spanned by the start and :math:`B_*\bar w^*`. With all clients in every
    round, each iterate of D-GD stays in it, whatever the first head, step sizes and number of
    rounds.
    With c outputs, the columns of :math:`B_*\bar W^*` take the place of :math:`B_*\bar w^*`.

    However short the mean head, its direction is counted, and lowers the floor: only a part that
    rounding of the heads could have made (4e-16 of their size) counts as zero. In
    arithmetic with rounding, bodies that have shrunk by as much may be found below the floor.

    Args:
        tasks: the clients' tasks.
        B0: the server's first body, shape (d, any number of columns).

    Returns:
        The floor, in [0, 1].

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if shapes do not fit.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))  # mean head 0
        >>> one_step_floor(tasks, np.array([[0.6], [0.8], [0.0]]))
        0.8

    Reference:
        Theorem 5.1 (thm-one-step-floor) and Theorem 5.4 (thm-matrix-heads). Chapter 5.
    """
    check_tasks(tasks)
    heads, _ = scaled(tasks.heads)
    return _floor(tasks, B0, _mean(heads), _rounding(heads))


def span_floor(tasks: LinearTasks, B0: Float[np.ndarray, "d k"]) -> float:
    r"""Distance that no number of local steps beats: W is the start and *all* :math:`\theta_i`.

    It is zero when the heads span :math:`\mathbb R^k`. It holds for any participation. Directions
    of heads that their rounding could have made do not count.

    Args:
        tasks: the clients' tasks.
        B0: the server's first body, shape (d, any number of columns).

    Returns:
        The floor, in [0, 1]; at most ``one_step_floor``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if shapes do not fit.

    Example:
        >>> alike = LinearTasks(np.eye(4)[:, :2], np.array([[1.0, 0.0], [0.5, 0.0]]))
        >>> span_floor(alike, np.eye(4)[:, 2:])
        1.0

    Reference:
        Proposition 8.1 (prop-span-floor). Chapter 8.
    """
    check_tasks(tasks)
    heads, _ = scaled(tasks.heads)
    U, s, _ = np.linalg.svd(np.moveaxis(heads, 0, -1).reshape(tasks.k, -1), full_matrices=False)
    return _floor(tasks, B0, U * s, math.sqrt(tasks.num_clients) * _rounding(heads))


def worst_case_tasks(
    B0: Float[np.ndarray, "d k"], heads: Float[np.ndarray, "M k *c"], *, distance: float
) -> LinearTasks:
    r"""Find the truth on which one local step makes no progress at all, ever.

    With :math:`q_1,\dots,q_k` an orthonormal basis of the start, :math:`q_{k+1}` a unit
    vector orthogonal to it, and U orthogonal with its last column orthogonal to the mean head,
    :math:`B_*=[q_1,\dots,q_{k-1},\sqrt{1-\mathrm{dist}_0^2}\,q_k+\mathrm{dist}_0\,q_{k+1}]\,U^\top`.
    Of these choices it makes one that does not depend on the machine.

    Args:
        B0: the server's first body, of full rank, shape (d, k), k < d.
        heads: any heads whose mean has rank less than k, shape (M, k), or (M, k, c). Vectors
            qualify if k ≥ 2, or if their mean is zero.
        distance: the distance of the start from the truth, in [0, 1].

    Returns:
        Tasks with these heads, and ``one_step_floor(tasks, B0)`` equal to ``distance``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the mean head has rank k (one step can learn), or B0 has not; if shapes do
            not fit, or ``distance`` is not a sine.

    Example:
        >>> tasks = worst_case_tasks(np.eye(4)[:, :2], np.eye(2), distance=0.9)
        >>> round(one_step_floor(tasks, np.eye(4)[:, :2]), 12)
        0.9

    Reference:
        Theorem 5.2 (thm-one-step-worst-case), Theorem 5.3 (thm-one-step-mean-zero) and
        Theorem 5.4 (thm-matrix-heads); their idea is Collins et al. (2022). Chapter 5.
    """
    B0 = floats("B0", B0, (None, None))
    d, k = B0.shape
    heads = floats("heads", heads, None)
    heads = floats("heads", heads, (None, k, None)[: max(2, heads.ndim)])
    distance = check_number("distance", distance, least=0, most=1)
    if k >= d:
        raise ValueError(f"Invalid B0: k={k} columns fill d={d} dimensions. Use k < d.")
    if (rank := orthonormal(B0).shape[1]) < k:
        raise ValueError(f"Invalid B0: its rank is {rank}. Use k={k} independent columns.")
    near, _ = scaled(heads)
    U, s, _ = np.linalg.svd(_mean(near))
    unseen = U[:, np.count_nonzero(s > _rounding(near)) :]
    if not unseen.size:
        raise ValueError(
            f"Invalid heads: their mean has rank k={k}, so one step can learn. "
            "Use heads of zero mean, or k >= 2 with one output."
        )
    # Of many worst truths, one that is the same whatever bases LAPACK finds; ties go to the first.
    Q, R = np.linalg.qr(B0 / np.abs(B0).max(axis=0))
    Q *= np.sign(np.diag(R))
    u = unseen @ unseen[np.argmax((unseen**2).sum(axis=1).round(6))]
    u /= np.linalg.norm(u)
    p = np.zeros(d)
    p[np.argmin((Q**2).sum(axis=1).round(6))] = 1  # the unit vector farthest from the start
    for _ in range(2):  # twice, against rounding
        p = p - Q @ (Q.T @ p)
    turned = math.sqrt(1 - distance**2) * Q @ u + distance * p / np.linalg.norm(p)
    return LinearTasks(Q + np.outer(turned - Q @ u, u), heads)


def _mean(heads: np.ndarray) -> np.ndarray:
    """The mean of the heads, each entry rounded once, shape (k, c).

    A sum in floats may err by more than what is left of heads that nearly cancel.
    """
    columns = heads.reshape(len(heads), -1).T
    mean = np.array([math.fsum(column) for column in columns]) / len(heads)
    return mean.reshape(heads.shape[1], -1)


def _rounding(heads: np.ndarray) -> float:
    """How long a mean of heads may be that is zero but for their rounding."""
    return 2 * EPS * float(np.linalg.norm(heads)) / math.sqrt(len(heads))


def _floor(tasks: LinearTasks, B0: np.ndarray, seen: np.ndarray, rounding: float) -> float:
    """How far ``B_star`` sticks out of the span of B0 and ``B_star @ seen``.

    A direction too many makes the floor lower, one too few makes it wrong. So those alone are left
    out that are within ``rounding``, or whose share of ``seen`` outside B0 is within the error of
    computing it: then no body of a condition number below 1e10 can tell them from B0.
    """
    Q = orthonormal(floats("B0", B0, (tasks.d, None)))
    new = tasks.B_star @ seen
    error = 8 * EPS * math.sqrt(tasks.d) * float(norm2(seen))
    for _ in range(2):  # twice, against rounding
        new = new - Q @ (Q.T @ new)
    W = np.column_stack([Q, orthonormal(new, at_least=rounding + error)])
    return min(1.0, float(norm2(tasks.B_star - W @ (W.T @ tasks.B_star))))
