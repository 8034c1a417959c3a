"""Many rounds, exactly, in the few dimensions that they ever visit."""

__all__ = ["Trajectory", "run"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from fedlib._checks import (
    check_bool,
    check_int,
    check_positive,
    check_positive_int,
    check_rng,
    shown,
)
from fedlib.linear._arrays import check_memory, defect, floats, norm2, rescaled, scaled, watched
from fedlib.linear.subspace import seeing, sines
from fedlib.linear.tasks import LinearTasks, check_tasks, wide_enough

CACHED = 20_000
"""Numbers per block of clients: small enough to stay in a core's own memory."""

MANY_STEPS = 100_000
"""Local steps of one block of clients that are worth a bar of their own."""


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    r"""The server's iterates after rounds 0 … T; entry 0 is the start.

    All bodies lie in the span of the truth and the start (Corollary 6.2), so they are kept in
    coordinates: ``traj.B[t]`` is ``basis @ coords[t]``. ``traj.B`` builds all of them, T + 1
    matrices of d × k; ``traj[t]`` builds one.

    Attributes:
        basis: orthonormal columns, those of ``B_star`` first, shape (d, n).
        coords: coordinates of the bodies, shape (T + 1, n, k).
        w: the server's heads, shape (T + 1, k), or (T + 1, k, c).
        lr: the step size α.
        rank: features of the truth: columns of ``B_star``, at most k.
    """

    basis: Float[np.ndarray, "d n"]
    coords: Float[np.ndarray, "rounds n k"]
    w: Float[np.ndarray, "rounds k *c"]
    lr: float
    rank: int

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, round_num: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, w) after that round; -1 is the last.

        Raises:
            IndexError: if the run has no such round.
        """
        try:
            if isinstance(round_num, bool | np.bool_):
                raise TypeError
            return self.basis @ self.coords[round_num], self.w[round_num]
        except (IndexError, OverflowError, TypeError, ValueError):
            last = len(self) - 1
            raise IndexError(
                f"Invalid round_num={shown(round_num)}: the run has no such round. "
                f"Use a whole number from 0 to {last}, or -1 for the last."
            ) from None

    def __repr__(self) -> str:
        sizes = f"num_rounds={len(self) - 1}, d={len(self.basis)}, k={self._k}"
        return f"Trajectory({sizes}, lr={self.lr})"

    @property
    def _k(self) -> int:
        return self.coords.shape[2]

    @property
    def B(self) -> Float[np.ndarray, "rounds d k"]:
        """The bodies of all rounds.

        Raises:
            ValueError: if they do not fit into memory; ``traj[t]`` is one of them.
        """
        size = len(self) * len(self.basis) * self._k
        check_memory("num_rounds", len(self) - 1, size, "traj[t], one body at a time")
        return self.basis @ self.coords

    @cached_property
    def distance(self) -> Float[np.ndarray, " rounds"]:
        r"""Distances :math:`\|(I-QQ^\top)B_*\|` from the truth.

        Small ones keep their relative precision; those of a model wider than the truth are right
        to rounding (1e-15). A body whose condition number exceeds 1e10
        counts as rank-deficient, distance 1: rounding has overwritten its last direction. Long
        before, from 1e6 on (see ``condition``), digits are being lost.
        """
        return sines(self.coords[:, : self.rank], self.coords[:, self.rank :])

    @cached_property
    def condition(self) -> Float[np.ndarray, " rounds"]:
        """Condition numbers of the bodies, largest over least singular value."""
        s = np.linalg.svd(scaled(self.coords, (-2, -1))[0], compute_uv=False)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(s[:, -1] > 0, s[:, 0] / s[:, -1], np.inf)

    @cached_property
    def delta(self) -> Float[np.ndarray, " rounds"]:
        r"""Deviations from orthonormality, :math:`\|\Delta_t\|=\|I-\alpha B_t^\top B_t\|`."""
        return defect(self.coords, self.lr)

    @cached_property
    def D(self) -> Float[np.ndarray, " rounds"]:
        r"""Sizes of the part outside the truth, :math:`D_t=\sqrt\alpha\|B_{*\perp}^\top B_t\|`.

        If the model is wider than the truth, only those k_star features count that see the truth
        at the start: the others never move (Theorem 7.3). See ``seeing``.
        """
        with np.errstate(over="ignore"):
            return np.sqrt(self.lr) * norm2(self.coords[:, self.rank :] @ self.seeing)

    @cached_property
    def seeing(self) -> Float[np.ndarray, "k k_star"]:
        r"""Orthonormal basis of the rows of :math:`B_*^\top B_0`: the features that learn.

        The identity if the model is as wide as the truth.
        """
        return seeing(self.coords[0, : self.rank])


def run(
    tasks: LinearTasks,
    B0: Float[np.ndarray, "d k"],
    w0: Float[np.ndarray, "k *c"],
    *,
    local_steps: int,
    lr: float,
    num_rounds: int,
    cohort_size: int | None = None,
    replace: bool = False,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> Trajectory:
    r"""Run FedAvg on the population losses; ``local_steps=1`` is the one-step method, D-GD.

    The recursion is that of ``one_round``, played in the coordinates of the span of
    :math:`B_*` and :math:`B_0`, at most 2k of them: the result is exact and its cost does not
    depend on d. The model may have more features than the truth, k ≥ ``tasks.k``.

    Args:
        tasks: the clients' tasks.
        B0: the server's first body, shape (d, k), ``tasks.k`` ≤ k ≤ d.
        w0: its first head, shape (k,), or (k, c) for c outputs.
        local_steps: gradient steps τ of every client in every round.
        lr: their size α.
        num_rounds: rounds T, 0 or more; all iterates are kept, so they must fit into memory.
        cohort_size: clients m drawn in each round; None takes all.
        replace: draw them with replacement, as in Theorem 8.3 (thm-cohort).
        rng: draws the cohorts; required with ``cohort_size``.
        progress: show a bar in runs that take more than a minute.

    Returns:
        The iterates of all rounds.

    Raises:
        TypeError: if an argument is of another type, or ``cohort_size`` comes without a generator.
        ValueError: if shapes do not fit, a value is out of range, or the iterates do not fit into
            memory.
        FloatingPointError: if the iterates stop being finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tasks = LinearTasks.random(1000, 2, num_clients=10, rng=rng)
        >>> B0 = rng.standard_normal((1000, 2)) / 30
        >>> traj = run(tasks, B0, np.zeros(2), local_steps=5, lr=0.5, num_rounds=200)
        >>> traj
        Trajectory(num_rounds=200, d=1000, k=2, lr=0.5)
        >>> traj.distance.shape, traj.B.shape, traj.w.shape
        ((201,), (201, 1000, 2), (201, 2))

    Reference:
        Collins et al. (2022). Corollary 6.2 (cor-run-span). Chapter 6. For wider models
        Theorem 7.3 (thm-width). Chapter 7.
    """
    check_tasks(tasks)
    local_steps, lr = check_positive_int("local_steps", local_steps), check_positive("lr", lr)
    num_rounds, progress = check_int("num_rounds", num_rounds, 0), check_bool("progress", progress)
    B0 = wide_enough(tasks, floats("B0", B0, (tasks.d, None)))
    k, outputs = B0.shape[1], tasks.heads.shape[2:]
    w = floats("w0", w0, (k, *outputs)).reshape(k, -1)
    draw = _cohorts(tasks.num_clients, cohort_size, replace, rng)
    heads = tasks.heads.reshape(tasks.num_clients, tasks.k, -1)

    start, exponent = scaled(B0)
    basis = np.linalg.qr(np.column_stack([tasks.B_star, start]))[0]
    basis = basis[:, : min(basis.shape[1], tasks.d)]
    basis[:, : tasks.k] = tasks.B_star  # QR finds them up to sign
    b = rescaled(basis.T @ start, exponent)
    check_memory("num_rounds", num_rounds, (num_rounds + 1) * (b.size + w.size), "fewer rounds")
    coords, ws = np.empty((num_rounds + 1, *b.shape)), np.empty((num_rounds + 1, *w.shape))
    coords[0], ws[0] = b, w
    with np.errstate(over="ignore", invalid="ignore"):
        for round_num in watched(num_rounds, "rounds", progress=progress):
            who, weights = draw()
            taught = heads if who is None else heads[who]
            if local_steps == 1:  # a common first step sees only the mean head
                taught = np.tensordot(weights, taught, 1)[None]
                weights = np.ones(1)
            b, w = _average(b, w, taught, weights, local_steps, lr, progress)
            if not (np.isfinite(b).all() and np.isfinite(w).all()):
                raise FloatingPointError(
                    f"The run diverged in round {round_num + 1}. Use a lr smaller than {lr}."
                )
            coords[round_num + 1], ws[round_num + 1] = b, w
    return Trajectory(basis, coords, ws.reshape(-1, k, *outputs), lr, tasks.k)


def _average(
    b: np.ndarray,
    w: np.ndarray,
    heads: np.ndarray,
    weights: np.ndarray,
    tau: int,
    lr: float,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Play a round in coordinates, clients in blocks: (n, k) and (k, c) in, the same out."""
    (n, k), c, rank = b.shape, w.shape[1], heads.shape[1]
    block = max(1, CACHED // (n * k))
    new_b, new_w = np.zeros((n, k)), np.zeros((k, c))
    long = tau > MANY_STEPS
    for first in range(0, len(heads), block):
        taught, p = heads[first : first + block], weights[first : first + block]
        bs, ws = np.repeat(b[None], len(p), axis=0), np.repeat(w[None], len(p), axis=0)
        outer = np.empty_like(bs)
        for _ in watched(tau, "local steps", progress=progress) if long else range(tau):
            r = bs @ ws
            r[:, :rank] -= taught
            r *= lr
            np.matmul(r, ws.transpose(0, 2, 1), out=outer)
            ws = ws - bs.transpose(0, 2, 1) @ r
            bs -= outer
        new_b += np.tensordot(p, bs, 1)
        new_w += np.tensordot(p, ws, 1)
    return new_b, new_w


def _cohorts(num_clients, cohort_size, replace, rng):
    """Return a function that draws each round's clients (None: all) and their weights."""
    replace = check_bool("replace", replace)
    if rng is not None or cohort_size is not None:
        rng = check_rng(rng)
    if cohort_size is None:
        if replace:
            raise ValueError("Invalid replace=True: all clients take part. Give a cohort_size.")
        everyone = None, np.full(num_clients, 1 / num_clients)
        return lambda: everyone
    cohort_size = check_positive_int("cohort_size", cohort_size)
    if not replace and cohort_size > num_clients:
        raise ValueError(
            f"Invalid cohort_size={cohort_size}: there are {num_clients} clients. "
            f"Use cohort_size <= {num_clients}, or replace=True."
        )
    check_memory("cohort_size", cohort_size, 4 * cohort_size, "fewer clients a round")

    def draw():
        drawn = rng.choice(num_clients, cohort_size, replace=replace)
        who, counts = np.unique(drawn, return_counts=True)
        return who, counts / cohort_size

    return draw
