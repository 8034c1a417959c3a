"""How far one column space is from another."""

__all__ = ["principal_angles", "seeing", "sines", "subspace_distance"]

import numpy as np
from jaxtyping import Float

from fedlib.linear._arrays import check_memory, floats, norm2, orthonormal, scaled

OVERWRITTEN = 1e-10
"""A singular value this small beside the largest: rounding has the say in its direction."""


def subspace_distance(B: Float[np.ndarray, "d k"], B_star: Float[np.ndarray, "d k_star"]) -> float:
    r"""Distance of column spaces, :math:`\|(I-QQ^\top)B_*\|`, the sine of the largest angle.

    Args:
        B: any matrix, shape (d, k); Q is an orthonormal basis of its columns.
        B_star: orthonormal columns, shape (d, k_star).

    Returns:
        A number in [0, 1]; 1 if the rank of B is less than k_star. Singular values of B that
        rounding of the largest could have made count as zero.

    Raises:
        TypeError: if a matrix does not hold real numbers.
        ValueError: if shapes do not fit, or the columns of ``B_star`` are not orthonormal.

    Example:
        >>> B_star = np.eye(3)[:, :2]
        >>> B = np.array([[1.0, 0.0], [0.0, 0.8], [0.0, 0.6]])
        >>> round(subspace_distance(B, B_star), 6), subspace_distance(0 * B, B_star)
        (0.6, 1.0)

    Reference:
        Definition 4.1 (def-subspace-distance), after Collins et al. (2022). Chapter 4.
    """
    Q, B_star = _bases(B, B_star)
    if Q.shape[1] < B_star.shape[1]:
        return 1.0  # some unit x has QᵀB_star x = 0
    return min(1.0, float(norm2(B_star - Q @ (Q.T @ B_star))))


def principal_angles(
    B: Float[np.ndarray, "d k"], B_star: Float[np.ndarray, "d k_star"]
) -> Float[np.ndarray, " k_star"]:
    r"""Principal angles between two column spaces, in radians, the largest first.

    Their cosines are the singular values of :math:`Q^\top B_*`, their sines those of
    :math:`(I-QQ^\top)B_*`; both are used, so that small and right angles are exact to rounding.

    Args:
        B: any matrix, shape (d, k).
        B_star: orthonormal columns, shape (d, k_star).

    Returns:
        Angles in [0, π/2], shape (k_star,); a missing direction of B counts as a right angle.

    Raises:
        TypeError: if a matrix does not hold real numbers.
        ValueError: if shapes do not fit, or the columns of ``B_star`` are not orthonormal.

    Example:
        >>> B_star = np.eye(3)[:, :2]
        >>> B = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> np.degrees(principal_angles(B, B_star)).round(6)
        array([45.,  0.])

    Reference:
        Björck and Golub (1973). Chapter 4.
    """
    Q, B_star = _bases(B, B_star)
    cosines = np.zeros(B_star.shape[1])
    found = np.linalg.svd(Q.T @ B_star, compute_uv=False)
    cosines[: len(found)] = found
    sine = np.linalg.svd(B_star - Q @ (Q.T @ B_star), compute_uv=False)
    return np.arctan2(sine, cosines[::-1])


def sines(
    A: Float[np.ndarray, "*rounds k_star k"], Z: Float[np.ndarray, "*rounds r k"]
) -> Float[np.ndarray, "*rounds"]:
    r"""Distances of the column spaces of :math:`[A; Z]` from the first coordinates, A's rows.

    Below ½ the tangent :math:`\|ZA^{-1}\|` is used, which keeps its relative precision however
    small the distance. A nearly singular :math:`[A; Z]` counts as rank-deficient: distance 1.
    A wide body, of more columns than A has rows, is brought to the square case first.

    Args:
        A: the rows inside the truth, :math:`B_*^\top B`, for any number of rounds.
        Z: the rows outside.

    Returns:
        One distance per round.
    """
    k = A.shape[-2]
    if A.shape[-1] > k:
        A, Z = _square(A, Z)
    both, _ = scaled(np.concatenate([A, Z], axis=-2), (-2, -1))
    A, Z = both[..., :k, :], both[..., k:, :]
    U, s, _ = np.linalg.svd(both, full_matrices=False)
    sine = np.where(s[..., -1] > OVERWRITTEN * s[..., 0], norm2(U[..., k:, :]), 1.0)
    small = sine < 0.5
    tangent = norm2(Z[small] @ np.linalg.inv(A[small]))
    sine[small] = tangent / np.sqrt(1 + tangent**2)
    return np.minimum(sine, 1.0)


def seeing(A: Float[np.ndarray, "k_star k"]) -> Float[np.ndarray, "k k_star"]:
    """Return an orthonormal basis of the row space of A; the identity if A is square."""
    k_star, k = A.shape
    return np.eye(k) if k == k_star else np.linalg.svd(A, full_matrices=False)[2].T


def _square(A: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find square A and Z at the same distance.

    In an orthonormal basis whose first vectors span the rows of A, the other columns of the body
    lie outside the truth. There they can only remove what the first leave outside.
    """
    k = A.shape[-2]
    N = np.swapaxes(np.linalg.svd(A)[2], -1, -2)
    inside, Z = A @ N[..., :k], Z @ N
    U, s, _ = np.linalg.svd(Z[..., k:], full_matrices=False)
    U = U * (s > OVERWRITTEN * norm2(Z)[..., None])[..., None, :]
    Z = Z[..., :k]
    return inside, Z - U @ (np.swapaxes(U, -1, -2) @ Z)


def _bases(B: np.ndarray, B_star: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    B_star = truth(B_star)
    return orthonormal(floats("B", B, (len(B_star), None))), B_star


def truth(B_star: np.ndarray) -> np.ndarray:
    """Return ``B_star`` as float64, refusing columns that are not orthonormal."""
    B_star = floats("B_star", B_star, (None, None))
    check_memory("B_star", B_star, B_star.shape[1] ** 2, "fewer columns")
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(B_star.T @ B_star - np.eye(B_star.shape[1])).max()
    if not error <= 1e-10:
        raise ValueError(
            f"Invalid B_star: its columns are not orthonormal, by {error:.1e}. "
            "Use np.linalg.qr(B_star)[0]."
        )
    return B_star
