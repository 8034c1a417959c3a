"""The clients' regression tasks: a shared subspace, and one head each."""

__all__ = ["LinearTasks", "check_tasks", "matched_start", "wide_enough"]

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from fedlib._checks import (
    check_number,
    check_positive,
    check_positive_int,
    check_rng,
    check_type,
    refuse,
)
from fedlib.linear._arrays import EPS, check_memory, floats, least_singular, rescaled, scaled
from fedlib.linear.subspace import truth

LARGEST_CONDITION = 1e12
"""Beyond, float64 holds too few digits of the least eigenvalue of the heads' covariance."""

LARGEST_SPREAD = 1e9
"""Largest length of a head beside the least spread of heads: nine of float64's sixteen digits."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearTasks:
    r"""Clients whose regression vectors share a subspace, :math:`\theta_i=B_*w_i^*`.

    Client i's loss is :math:`f_i(B,w)=\frac12|Bw-\theta_i|^2`: squared error on inputs of
    identity covariance, in expectation. With c outputs, heads and w are k × c matrices.

    Args:
        B_star: orthonormal columns, shape (d, k), k < d.
        heads: one head per client, shape (M, k), or (M, k, c) for c outputs.

    Raises:
        ValueError: if shapes do not fit, columns are not orthonormal, or all heads are zero.

    Example:
        >>> tasks = LinearTasks(np.eye(3)[:, :2], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> tasks
        LinearTasks(d=3, k=2, num_clients=2)
        >>> tasks.mean_head, tasks.diversity
        (array([0.5, 0.5]), 0.0)

    Reference:
        Collins et al. (2022). Proposition 4.1 (prop-population-loss). Chapter 4.
    """

    B_star: Float[np.ndarray, "d k"]
    heads: Float[np.ndarray, "M k *c"]

    def __post_init__(self) -> None:
        B_star = truth(self.B_star).copy()
        d, k = B_star.shape
        if k >= d:
            raise ValueError(f"Invalid B_star: k={k} columns fill d={d} dimensions. Use k < d.")
        heads = floats("heads", self.heads, None)
        heads = floats("heads", heads, (None, k, None)[: max(2, heads.ndim)]).copy()
        if not heads.any():
            raise ValueError("Invalid heads: all are zero. Use at least one other head.")
        for name, array in {"B_star": B_star, "heads": heads}.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def random(
        cls,
        d: int,
        k: int,
        num_clients: int,
        *,
        rng: np.random.Generator,
        condition: float = 1.0,
        mean_size: float = 0.0,
        num_outputs: int | None = None,
    ) -> "LinearTasks":
        r"""Draw tasks whose heads have the mean and covariance asked for, exactly.

        Gaussian heads are centred and whitened, stretched, moved, and scaled so that the longest
        has norm 1. Rounding leaves a relative error of about ``1e-15 * condition**0.5`` in the
        spread of heads in their least direction, and as much again for a mean head of size 1.

        Args:
            d: inputs.
            k: features, less than d.
            num_clients: clients M, more than k (with c outputs: M c > k + c - 1).
            rng: draws subspace and heads.
            condition: largest over least eigenvalue of the heads' covariance, from 1 to 1e12;
                those between are in geometric progression.
            mean_size: norm of the mean head, as a multiple of the root mean square distance of
                heads from it; at most ``1e9 / condition**0.5``.
            num_outputs: columns c of each head; None gives vectors.

        Returns:
            The tasks.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if one is out of range, or the tasks do not fit into memory.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> tasks = LinearTasks.random(9, 3, 50, rng=rng, condition=4.0, mean_size=0.5)
            >>> eigenvalues = np.linalg.eigvalsh(tasks.head_covariance)
            >>> round(float(eigenvalues[-1] / eigenvalues[0]), 9), round(tasks.L_max, 9)
            (4.0, 1.0)
        """
        check_rng(rng)
        d, k = check_positive_int("d", d), check_positive_int("k", k)
        num_clients = check_positive_int("num_clients", num_clients)
        condition = check_number("condition", condition, least=1, most=LARGEST_CONDITION)
        largest = LARGEST_SPREAD / math.sqrt(condition)
        mean_size = check_number("mean_size", mean_size, least=0, most=largest)
        outputs: tuple[int, ...] = ()
        if num_outputs is not None:
            outputs = (check_positive_int("num_outputs", num_outputs),)
        if k >= d:
            refuse("k", k, f"there are d={d} inputs", "k < d")
        c = math.prod(outputs)
        if (num_clients - 1) * c < k:
            why = f"too few heads to vary in k={k} directions"
            refuse("num_clients", num_clients, why, f"num_clients >= {-(-k // c) + 1}")
        check_memory("d", d, 2 * d * k, "fewer inputs or features")
        check_memory("num_clients", num_clients, 3 * num_clients * k * c, "fewer clients")
        heads = rng.standard_normal((num_clients, k, *outputs))
        heads -= heads.mean(axis=0)
        values, vectors = np.linalg.eigh(_moment(heads))
        if not values[-1] < 1e4 * values[0]:  # few heads: squares would lose too many digits
            U, _, Vt = np.linalg.svd(_rows(heads), full_matrices=False)
            U = math.sqrt(num_clients) * U @ Vt  # the same whatever signs LAPACK gives its vectors
            heads = np.moveaxis(U.reshape(num_clients, *outputs, k), -1, 1)
            values, vectors = np.linalg.eigh(_moment(heads))
        turn = np.linalg.qr(rng.standard_normal((k, k)))[0]
        stretch = turn * np.geomspace(1.0, condition**-0.5, k) @ turn.T
        heads = np.einsum("jk,ik...->ij...", stretch @ (vectors * values**-0.5) @ vectors.T, heads)
        mean = rng.standard_normal((k, *outputs))
        spread = np.sqrt((heads**2).sum() / num_clients)
        heads += mean_size * spread * mean / np.linalg.norm(mean)
        longest = np.linalg.norm(heads.reshape(num_clients, -1), axis=1).max()
        return cls(np.linalg.qr(rng.standard_normal((d, k)))[0], heads / longest)

    @property
    def d(self) -> int:
        """Number of inputs."""
        return self.B_star.shape[0]

    @property
    def k(self) -> int:
        """Number of features."""
        return self.B_star.shape[1]

    @property
    def num_clients(self) -> int:
        """Number of clients M."""
        return len(self.heads)

    @cached_property
    def _scaled(self) -> tuple[np.ndarray, int]:
        """The heads over a power of two, and its exponent: 0 unless they are tiny or huge."""
        return scaled(self.heads)

    @cached_property
    def _longest(self) -> float:
        """Norm of the longest of the scaled heads."""
        return float(np.linalg.norm(self._scaled[0].reshape(self.num_clients, -1), axis=1).max())

    @property
    def L_max(self) -> float:
        """Norm of the longest head (of a matrix, Frobenius)."""
        return float(rescaled(self._longest, self._scaled[1]))

    @cached_property
    def mean_head(self) -> Float[np.ndarray, "k *c"]:
        """The mean of all heads: all that one local step sees (Chapter 5)."""
        heads, exponent = self._scaled
        return _frozen(rescaled(heads.mean(axis=0), exponent))

    @cached_property
    def head_covariance(self) -> Float[np.ndarray, "k k"]:
        r"""Covariance of the heads, :math:`\frac1M\sum_i(w_i^*-\bar w^*)(w_i^*-\bar w^*)^\top`."""
        heads, exponent = self._scaled
        return _frozen(rescaled(_moment(heads - heads.mean(axis=0)), 2 * exponent))

    @cached_property
    def second_moment(self) -> Float[np.ndarray, "k k"]:
        r"""Uncentred moment of the heads, :math:`\frac1M\sum_iw_i^*w_i^{*\top}`."""
        heads, exponent = self._scaled
        return _frozen(rescaled(_moment(heads), 2 * exponent))

    @cached_property
    def diversity(self) -> float:
        """Least eigenvalue μ² of the heads' covariance; zero if they lie in a hyperplane.

        It is computed from singular values of the centred heads, whose digits squaring would lose
        (Proposition 4.6, prop-diversity). What rounding could have made counts as zero.
        """
        heads, exponent = self._scaled
        square, _ = least_singular(_rows(heads - heads.mean(axis=0)))
        return float(rescaled(square / self.num_clients, 2 * exponent))

    @cached_property
    def proven_diversity(self) -> float:
        """Diversity over L_max², rounded down: a certificate may rest on it."""
        heads, _ = self._scaled
        square, rounding = least_singular(_rows(heads - heads.mean(axis=0)))
        share = max(0.0, math.sqrt(square) - rounding) / self._longest
        return max(0.0, share**2 / self.num_clients - (self.num_clients * EPS) ** 2)

    @cached_property
    def theta(self) -> Float[np.ndarray, "M d *c"]:
        r"""The clients' regression vectors :math:`\theta_i=B_*w_i^*`."""
        heads, exponent = self._scaled
        size = self.heads.size // self.k * self.d
        check_memory("tasks", self, size, "fewer inputs or clients")
        return _frozen(rescaled(np.einsum("dk,mk...->md...", self.B_star, heads), exponent))

    def normalised(self) -> "LinearTasks":
        """Return the same tasks in units in which the longest head has norm 1 (Chapter 6)."""
        return LinearTasks(self.B_star, self._scaled[0] / self._longest)

    def reduced(self) -> "LinearTasks":
        r"""Return the same tasks, told in as few features as their heads span.

        If all heads lie in a subspace of dimension k', :math:`\theta_i=B_*TT^\top w_i^*` with an
        orthonormal basis T of it: the truth is :math:`B_*T`, the heads are :math:`T^\top w_i^*`.
        A model of k features is then wider than the truth (Theorem 7.3). Directions that rounding
        of the heads could have made do not count.

        Example:
            >>> line = LinearTasks(np.eye(4)[:, :2], np.array([[0.6, 0.8], [-0.3, -0.4]]))
            >>> line.reduced(), line.reduced().heads.round(9).ravel()
            (LinearTasks(d=4, k=1, num_clients=2), array([-1. ,  0.5]))

        Reference:
            Theorem 7.3 (thm-width). Chapter 7.
        """
        heads, _ = self._scaled
        U, s, _ = np.linalg.svd(_rows(heads).T, full_matrices=False)
        basis = U[:, s > max(U.shape[0], self.num_clients) * EPS * s[0]]
        if basis.shape[1] == self.k:
            return self
        turned = np.linalg.qr(self.B_star @ basis)[0]
        basis = self.B_star.T @ turned
        return LinearTasks(turned, np.einsum("jk,mj...->mk...", basis, self.heads))

    def private_orders(self, *, rng: np.random.Generator) -> "LinearTasks":
        """Return tasks in which every client's outputs come in its own random order.

        Raises:
            ValueError: if heads are vectors, which have one output.
        """
        check_rng(rng)
        if self.heads.ndim == 2:
            raise ValueError("Invalid heads: one output has one order. Use heads (M, k, c), c > 1.")
        return LinearTasks(
            self.B_star, np.stack([head[:, rng.permutation(head.shape[1])] for head in self.heads])
        )

    def __repr__(self) -> str:
        outputs = "".join(f", num_outputs={c}" for c in self.heads.shape[2:])
        return f"LinearTasks(d={self.d}, k={self.k}, num_clients={self.num_clients}{outputs})"


def matched_start(
    tasks: LinearTasks, *, lr: float, distance: float, rng: np.random.Generator
) -> Float[np.ndarray, "d k"]:
    r"""Draw a start :math:`B_0` with :math:`\alpha B_0^\top B_0=I` at a given distance.

    Args:
        tasks: gives the true subspace.
        lr: step size α of the runs to come.
        distance: sine of the largest principal angle, in [0, 1], reached to rounding (1e-16);
            the other sines are uniform below it.
        rng: draws the directions.

    Returns:
        The start, shape (d, k).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tasks = LinearTasks.random(9, 3, num_clients=5, rng=rng)
        >>> B0 = matched_start(tasks, lr=0.25, distance=0.5, rng=rng)
        >>> np.allclose(0.25 * B0.T @ B0, np.eye(3))
        True

    Reference:
        The start of Theorem 7.1 (thm-representation). Chapter 7.
    """
    check_tasks(tasks)
    lr = check_positive("lr", lr)
    distance = check_number("distance", distance, least=0, most=1)
    check_rng(rng)
    d, k = tasks.B_star.shape
    num = min(k, d - k)
    sine = np.zeros(k)
    sine[:num] = distance * np.r_[1.0, rng.uniform(0, 1, num - 1)]
    normal = rng.standard_normal((d, num))
    for _ in range(2):  # twice, against rounding
        normal -= tasks.B_star @ (tasks.B_star.T @ normal)
    Q = tasks.B_star @ np.linalg.qr(rng.standard_normal((k, k)))[0] * np.sqrt(1 - sine**2)
    Q[:, :num] += np.linalg.qr(normal)[0] * sine[:num]
    return Q @ np.linalg.qr(rng.standard_normal((k, k)))[0] / np.sqrt(lr)


def check_tasks(tasks: object) -> LinearTasks:
    """Return tasks.

    Raises:
        TypeError: if they are something else.
    """
    return check_type("tasks", tasks, LinearTasks, "Use linear.LinearTasks(B_star, heads).")


def wide_enough(tasks: LinearTasks, B: np.ndarray, name: str = "B0") -> np.ndarray:
    """Return a body with at least as many columns as the truth, and no more than inputs.

    Raises:
        ValueError: if it has fewer, or more.
    """
    if not tasks.k <= B.shape[1] <= tasks.d:
        why = f"the truth has {tasks.k} features, and there are {tasks.d} inputs"
        use = f"shape ({tasks.d}, k) with {tasks.k} <= k <= {tasks.d}"
        raise ValueError(f"Invalid {name}: shape {B.shape}: {why}. Use {use}.")
    return B


def _frozen(array: np.ndarray) -> np.ndarray:
    """Make an array read-only, so that what is cached stays what it was."""
    array.setflags(write=False)
    return array


def _rows(heads: np.ndarray) -> np.ndarray:
    """The columns of all heads as rows, shape (M c, k)."""
    return np.moveaxis(heads, 1, -1).reshape(-1, heads.shape[1])


def _moment(heads: np.ndarray) -> np.ndarray:
    flat = heads.reshape(*heads.shape[:2], -1)
    return np.einsum("ijc,ilc->jl", flat, flat) / len(heads)
