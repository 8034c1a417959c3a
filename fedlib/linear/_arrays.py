"""Arrays as the linear theory takes them: float64, finite, of the right shape."""

__all__ = ["floats", "norm2", "orthonormal"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def floats(name: str, value: ArrayLike, shape: Sequence[int | None]) -> np.ndarray:
    """Return ``value`` as float64, refusing NaN, infinity and any other shape.

    Raises:
        ValueError: names the array, what is wrong, and the shape to use; None fits any length.
    """
    array = np.asarray(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"Invalid {name}: its shape is {array.shape}. Use shape ({wanted}).")
    if not np.isfinite(array).all():
        raise ValueError(f"Invalid {name}: NaN or infinity. Use finite numbers.")
    return array


def norm2(A: np.ndarray) -> np.ndarray | float:
    """Spectral norms of a stack of matrices, over the last two axes."""
    return np.linalg.norm(A, 2, axis=(-2, -1))


def orthonormal(A: np.ndarray, *, at_least: float | None = None) -> np.ndarray:
    """Return an orthonormal basis of the columns of ``A``, shape (d, rank).

    Singular values up to ``at_least`` count as zero; if None, up to rounding of the largest.
    """
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    least = max(A.shape) * np.finfo(np.float64).eps * s[0] if at_least is None else at_least
    return U[:, s > least]
