"""Arrays as the linear theory takes them: float64, finite, of the right shape, of any scale.

Products of numbers like 1e200 or 1e-200 leave the range of float64, although what is asked for (an
angle, a ratio) does not. So arrays far from 1 are divided by a power of two first, which is exact,
and results multiplied by it last. Arrays of ordinary size are left as they are, to the last bit.
"""

__all__ = [
    "EPS",
    "check_memory",
    "defect",
    "floats",
    "least_singular",
    "norm2",
    "orthonormal",
    "product",
    "rescaled",
    "scaled",
    "watched",
]

import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fedlib._checks import check_array, refuse

EPS = float(np.finfo(np.float64).eps)
ORDINARY = 100
"""Numbers between 2^-100 and 2^100 are not rescaled: squares of five of them stay finite."""

FAR = 20
"""A column shorter than another by 2^20 is rescaled before a basis is found."""


def floats(name: str, value: object, shape: Sequence[int | None] | None) -> np.ndarray:
    """Return ``value`` as float64, refusing NaN, infinity and any other shape.

    Raises:
        TypeError: if its entries are not real numbers.
        ValueError: names the array, what is wrong, and the shape to use; None fits any length.
    """
    return check_array(name, value, shape).astype(np.float64, copy=False)


def scaled(A: np.ndarray, axis: tuple[int, ...] | None = None) -> tuple[np.ndarray, Any]:
    """Return A divided by a power of two, and its exponent: 0 where A is of ordinary size.

    With axes, each of the arrays over them has an exponent of its own.
    """
    size = np.abs(A).max(axis=axis, keepdims=axis is not None, initial=0.0)
    exponent = np.frexp(size)[1]
    exponent = np.where(np.abs(exponent) <= ORDINARY, 0, exponent)
    if not exponent.any():
        return A, 0
    return np.asarray(np.ldexp(A, -exponent)), exponent if axis else int(exponent)


def rescaled(A: Any, exponent: np.ndarray | int) -> Any:
    """Return A times a power of two: infinite, or zero, where float64 ends."""
    if not np.any(exponent):
        return A
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(A, exponent)


def product(*factors: float | int) -> float:
    """Return a product, which is zero if one factor is, even beside infinity."""
    return 0.0 if 0 in factors else float(math.prod(factors))


def norm2(A: np.ndarray) -> Any:
    """Spectral norms of a stack of matrices, over the last two axes."""
    A, exponent = scaled(A, (-2, -1))
    norms = np.linalg.norm(A, 2, axis=(-2, -1))
    return norms if isinstance(exponent, int) else rescaled(norms, exponent[..., 0, 0])


def defect(B: np.ndarray, lr: float) -> Any:
    r"""Deviations from orthonormality, :math:`\|I-\alpha B^\top B\|`, of a stack of bodies."""
    if scaled(B)[1] or scaled(np.array(lr))[1]:
        with np.errstate(over="ignore"):
            B, lr = math.sqrt(lr) * B, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.eye(B.shape[-1]) - lr * B.swapaxes(-1, -2) @ B
    finite = np.isfinite(gap).all(axis=(-2, -1))
    return np.where(finite, norm2(np.where(finite[..., None, None], gap, 0.0)), math.inf)[()]


def orthonormal(A: np.ndarray, *, at_least: float | None = None) -> np.ndarray:
    """Return an orthonormal basis of the columns of ``A``, shape (d, rank).

    Singular values up to ``at_least`` count as zero; if None, up to rounding of the largest, after
    columns far shorter than the longest are brought to its size, by powers of two.
    """
    if at_least is None:
        exponents = np.frexp(np.abs(A).max(axis=0))[1]
        below = exponents.max() - exponents
        A = np.ldexp(A, np.where(below > FAR, below, 0)) if (below > FAR).any() else A
    A, exponent = scaled(A)
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    least = max(A.shape) * EPS * s[0] if at_least is None else rescaled(at_least, -exponent)
    return U[:, s > least]


def least_singular(A: np.ndarray) -> tuple[float, float]:
    """Return the square of the least singular value, and how far rounding may have moved the value.

    It is zero if there are fewer rows than columns, and if rounding of the largest exceeds it.
    """
    s, Vt = np.linalg.svd(A, full_matrices=len(A) < A.shape[1])[1:]
    rounding = max(A.shape) * EPS * float(s[0])
    square = float(np.sum((A @ Vt[-1]) ** 2))
    return (square if square > rounding**2 else 0.0), rounding


def check_memory(name: str, value: object, numbers: int, remedy: str) -> None:
    """Refuse what would not fit into this machine's memory, before any of it is allocated.

    Args:
        name: the argument that decides.
        value: what was given for it.
        numbers: how many numbers of float64 are to be kept at once.
        remedy: what to use.

    Raises:
        ValueError: if they need more bytes than the machine has.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        memory = 2**36
    if 8 * numbers > memory:
        giga = f"{8 * numbers / 1e9:,.0f} GB" if numbers < 1e20 else "far more"
        refuse(name, value, f"its arrays take {giga}; memory is {memory / 1e9:,.0f} GB", remedy)


def watched(count: int, what: str, *, progress: bool = True) -> Iterator[int]:
    """Count up to ``count``; after a minute, a bar shows how far it has come."""
    start, bar = time.monotonic(), None
    for i in range(count):
        if progress and bar is None and time.monotonic() - start > 60:  # a notebook stores any bar
            bar = tqdm(total=count, initial=i, desc=what, leave=False)
        yield i
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
