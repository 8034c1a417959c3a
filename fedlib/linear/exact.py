"""Exact arithmetic for constants: a rounding is proved, not trusted.

A proof with explicit constants rounds at every line: "at most 2.0887, say 2.09". Each function
below returns the rounded decimal as a fraction, having proved that it lies on the right side; the
next line of the proof goes on with that fraction, as a reader would with pencil and paper.
"""

__all__ = ["Q", "down", "sqrt_down", "sqrt_up", "up"]

from fractions import Fraction

Q = Fraction
"""A fraction of integers, also from a decimal: ``Q("2.09")`` is 209/100."""


def up(value: Fraction | int, displayed: str) -> Fraction:
    """Round up: prove that ``displayed`` is at least ``value``, and return it.

    Args:
        value: what was computed, exactly.
        displayed: the decimal, or fraction, to go on with.

    Returns:
        The displayed number.

    Raises:
        ValueError: if it is too small.
        TypeError: if ``value`` is not exact.

    Example:
        >>> up(Q(1, 3), "0.34")
        Fraction(17, 50)

    Reference:
        The proof of Theorem B. Chapter 7.
    """
    return _proved(_exact(value) <= Fraction(displayed), value, displayed, "larger")


def down(value: Fraction | int, displayed: str) -> Fraction:
    """Round down: prove that ``displayed`` is at most ``value``, and return it; as in ``up``.

    Example:
        >>> down(Q(1, 3), "0.33")
        Fraction(33, 100)
    """
    return _proved(_exact(value) >= Fraction(displayed), value, displayed, "smaller")


def sqrt_up(value: Fraction | int, displayed: str) -> Fraction:
    """Round a square root up: prove that the square of ``displayed`` is at least ``value``.

    Example:
        >>> sqrt_up(2, "1.415")
        Fraction(283, 200)
    """
    root = Fraction(displayed)
    return _proved(root >= 0 and 0 <= _exact(value) <= root**2, value, displayed, "larger")


def sqrt_down(value: Fraction | int, displayed: str) -> Fraction:
    """Round a square root down: prove that the square of ``displayed`` is at most ``value``.

    Example:
        >>> sqrt_down(2, "1.414")
        Fraction(707, 500)
    """
    root = Fraction(displayed)
    return _proved(root >= 0 and _exact(value) >= root**2, value, displayed, "smaller")


def _exact(value: Fraction | int) -> Fraction:
    if not isinstance(value, (Fraction, int)):
        raise TypeError(f"Invalid value={value!r}: it is not exact. Use a Fraction, as Q('0.1').")
    return Fraction(value)


def _proved(holds: bool, value: Fraction | int, displayed: str, other: str) -> Fraction:
    if not holds:
        raise ValueError(
            f"Invalid displayed={displayed!r}: on the wrong side, for {float(value):.8g}. "
            f"Use a {other} decimal."
        )
    return Fraction(displayed)
