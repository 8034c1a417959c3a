"""One round written out client by client, for proofs and pictures."""

__all__ = ["Round", "one_round"]

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedlib._checks import check_array, check_positive, check_positive_int
from fedlib.linear._arrays import check_memory, floats, watched
from fedlib.linear.tasks import LinearTasks, check_tasks, wide_enough


class Round(NamedTuple):
    r"""All that happens in one round of m clients.

    Attributes:
        B: the server's body after the round, shape (d, k).
        w: the server's head after the round, shape (k,), or (k, c).
        bodies: the clients' bodies after 0 … τ local steps, shape (τ + 1, m, d, k).
        heads: the clients' heads after 0 … τ local steps, shape (τ + 1, m, k), or (…, k, c).
        P: prior weight :math:`\mathrm{mean}_i\prod_s(I-\alpha w_{i,s}w_{i,s}^\top)`, (k, k).
        S: signal; the new body is :math:`BP+B_*S`, shape (k_star, k).
    """

    B: np.ndarray
    w: np.ndarray
    bodies: np.ndarray
    heads: np.ndarray
    P: np.ndarray
    S: np.ndarray


def one_round(
    tasks: LinearTasks,
    B: Float[np.ndarray, "d k"],
    w: Float[np.ndarray, "k *c"],
    *,
    local_steps: int,
    lr: float,
    clients: Int[np.ndarray, " m"] | None = None,
) -> Round:
    r"""Play one round in all d dimensions, and keep every intermediate value.

    Every client takes τ gradient steps on (B, w) at once,
    :math:`w'=w-\alpha B^\top r`, :math:`B'=B-\alpha rw^\top` with :math:`r=Bw-\theta_i`; the
    server averages. ``run`` plays many rounds far faster.

    Args:
        tasks: the clients' tasks.
        B: the body that all clients start from, shape (d, k), k ≥ ``tasks.k``.
        w: the head that they start from, shape (k,), or (k, c).
        local_steps: steps τ.
        lr: step size α.
        clients: indices of those that take part, from 0 to M - 1, one or more; a client that
            occurs twice counts twice. All, if None.

    Returns:
        The round.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if one is out of range, shapes do not fit, or what is to be kept does not fit
            into memory.
        FloatingPointError: if the local steps stop being finite.

    Example:
        >>> tasks = LinearTasks.random(5, 2, num_clients=3, rng=np.random.default_rng(0))
        >>> played = one_round(tasks, np.eye(5)[:, :2], np.ones(2), local_steps=4, lr=0.1)
        >>> played.heads.shape
        (5, 3, 2)
        >>> np.allclose(played.B, np.eye(5)[:, :2] @ played.P + tasks.B_star @ played.S)
        True

    Reference:
        Collins et al. (2022). Proposition 6.2 (prop-prior-signal). Chapter 6.
    """
    check_tasks(tasks)
    local_steps, lr = check_positive_int("local_steps", local_steps), check_positive("lr", lr)
    truth = tasks.heads if clients is None else tasks.heads[_positions(clients, tasks.num_clients)]
    truth = truth.reshape(*truth.shape[:2], -1)
    B = wide_enough(tasks, floats("B", B, (tasks.d, None)), "B")
    k, (m, rank, c) = B.shape[1], truth.shape
    w = floats("w", w, (k, *tasks.heads.shape[2:]))
    kept = 2 * (local_steps + 1) * (m * k * (tasks.d + c) + 50)  # and Python's own 50 an array
    check_memory("local_steps", local_steps, kept, "fewer steps or clients, or linear.run")
    bodies = [np.repeat(B[None], m, axis=0)]
    heads = [np.repeat(w.reshape(1, k, -1), m, axis=0)]
    P, S = np.repeat(np.eye(k)[None], m, axis=0), np.zeros((m, rank, k))
    with np.errstate(over="ignore", invalid="ignore"):
        theta = tasks.B_star @ truth
        for _ in watched(local_steps, "local steps"):
            b, v = bodies[-1], heads[-1]
            r, vT = b @ v - theta, v.transpose(0, 2, 1)
            bodies.append(b - lr * r @ vT)
            heads.append(v - lr * b.transpose(0, 2, 1) @ r)
            P = P - lr * (P @ v) @ vT
            S = S - lr * (S @ v) @ vT + lr * truth @ vT
        means = [array.mean(axis=0) for array in (bodies[-1], heads[-1], P, S)]
    if not all(np.isfinite(array).all() for array in (*means, bodies[-1], heads[-1])):
        raise FloatingPointError(
            f"The local steps diverged. Use an lr smaller than {lr}, or a smaller body."
        )
    steps = np.stack(heads).reshape(local_steps + 1, m, *w.shape)
    return Round(means[0], means[1].reshape(w.shape), np.stack(bodies), steps, *means[2:])


def _positions(clients: np.ndarray, num_clients: int) -> np.ndarray:
    """Return positions of clients, one or more, that exist."""
    clients = check_array("clients", check_array("clients", clients, (None,)), kinds="iu")
    for i in (clients.min(), clients.max()):
        if not 0 <= i < num_clients:
            raise ValueError(
                f"Invalid clients: there is no client {i} among {num_clients}. "
                f"Use positions from 0 to {num_clients - 1}."
            )
    return clients
