"""Distances below which a method can never get."""

__all__ = ["one_step_floor", "span_floor", "worst_case_tasks"]

import numpy as np
from jaxtyping import Float

from fedlib.linear._arrays import floats, norm2, orthonormal
from fedlib.linear.tasks import LinearTasks

ROUNDING = 1e-12
"""A new direction shorter than this beside the longest head is taken for rounding."""


def one_step_floor(tasks: LinearTasks, B0: Float[np.ndarray, "d k"]) -> float:
    r"""Distance that one local step per round never beats, :math:`\|(I-P_W)B_*\|`.

    :math:`W` is spanned by the start and :math:`B_*\bar w^*`. With all clients in every round,
    each iterate of D-GD stays in W, whatever the first head, step sizes and number of rounds.
    With c outputs, the columns of :math:`B_*\bar W^*` take the place of :math:`B_*\bar w^*`.

    Args:
        tasks: the clients' tasks.
        B0: the server's first body, shape (d, k).

    Returns:
        The floor, in [0, 1].

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :1], np.array([[1.0], [-1.0]]))  # mean head 0
        >>> one_step_floor(tasks, np.array([[0.6], [0.8], [0.0]]))
        0.8

    Reference:
        Theorems C(i) and C′(i). Chapter 5.
    """
    return _floor(tasks, B0, tasks.mean_head.reshape(tasks.k, -1))


def span_floor(tasks: LinearTasks, B0: Float[np.ndarray, "d k"]) -> float:
    r"""Distance that no number of local steps beats: W is the start and *all* :math:`\theta_i`.

    It is zero when the heads span :math:`\mathbb R^k`. It holds for any participation.

    Args:
        tasks: the clients' tasks.
        B0: the server's first body, shape (d, k).

    Returns:
        The floor, in [0, 1]; at most ``one_step_floor``.

    Example:
        >>> alike = LinearTasks(np.eye(4)[:, :2], np.array([[1.0, 0.0], [0.5, 0.0]]))
        >>> span_floor(alike, np.eye(4)[:, 2:])
        1.0

    Reference:
        After Theorem B8. Chapter 7.
    """
    return _floor(tasks, B0, np.moveaxis(tasks.heads, 0, -1).reshape(tasks.k, -1))


def worst_case_tasks(
    B0: Float[np.ndarray, "d k"], heads: Float[np.ndarray, "M k *c"], *, distance: float
) -> LinearTasks:
    r"""Find the truth on which one local step makes no progress at all, ever.

    With :math:`q_1,\dots,q_k` an orthonormal basis of the start, :math:`p` a unit vector
    orthogonal to it, and U orthogonal with its last column orthogonal to the mean head,
    :math:`B_*=[q_1,\dots,q_{k-1},\sqrt{1-\delta_0^2}\,q_k+\delta_0p]\,U^\top`.

    Args:
        B0: the server's first body, of full rank, shape (d, k), k < d.
        heads: any heads whose mean has rank less than k, shape (M, k), or (M, k, c). Vectors
            qualify if k ≥ 2, or if their mean is zero.
        distance: the distance δ₀ of the start from the truth, in [0, 1].

    Returns:
        Tasks with these heads, and ``one_step_floor(tasks, B0)`` equal to ``distance``.

    Raises:
        ValueError: if the mean head has rank k (one step can learn), or B0 has not.

    Example:
        >>> tasks = worst_case_tasks(np.eye(4)[:, :2], np.eye(2), distance=0.9)
        >>> round(one_step_floor(tasks, np.eye(4)[:, :2]), 12)
        0.9

    Reference:
        Theorems C(ii), C(iii) and C′(ii); their idea is Collins et al. (2022).
        Chapter 5.
    """
    B0 = floats("B0", B0, (None, None))
    d, k = B0.shape
    outputs = (None,) if np.ndim(heads) == 3 else ()
    heads = floats("heads", heads, (None, k, *outputs))
    if not 0 <= distance <= 1:
        raise ValueError(f"Invalid distance={distance}: a sine. Use 0 <= distance <= 1.")
    if k >= d:
        raise ValueError(f"Invalid B0: k={k} columns fill d={d} dimensions. Use k < d.")
    Q = orthonormal(B0)
    if Q.shape[1] < k:
        raise ValueError(f"Invalid B0: its rank is {Q.shape[1]}. Use k={k} independent columns.")
    U, s, _ = np.linalg.svd(heads.mean(axis=0).reshape(k, -1))
    if len(s) == k and s[-1] > ROUNDING * np.abs(heads).max():
        raise ValueError(
            f"Invalid heads: their mean has rank k={k}, so one step can learn. "
            "Use heads of zero mean, or k >= 2 with one output."
        )
    row = np.argmin((Q**2).sum(axis=1))  # the unit vector farthest from the start
    p = np.eye(d)[row]
    for _ in range(2):  # twice, against rounding
        p = p - Q @ (Q.T @ p)
    Q[:, -1] = np.sqrt(1 - distance**2) * Q[:, -1] + distance * p / np.linalg.norm(p)
    return LinearTasks(Q @ U.T, heads)


def _floor(tasks: LinearTasks, B0: np.ndarray, seen: np.ndarray) -> float:
    """How far ``B_star`` sticks out of the span of B0 and ``B_star @ seen``."""
    Q = orthonormal(floats("B0", B0, (tasks.d, None)))
    new = tasks.B_star @ seen
    for _ in range(2):  # twice, against rounding
        new = new - Q @ (Q.T @ new)
    W = np.column_stack([Q, orthonormal(new, at_least=ROUNDING * tasks.L_max)])
    return min(1.0, float(norm2(tasks.B_star - W @ (W.T @ tasks.B_star))))
