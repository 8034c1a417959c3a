"""Exact arithmetic for constants: a rounding is proved, not trusted.

A proof with explicit constants rounds at every line: "at most 2.0887, say 2.09". Each function
below returns the rounded decimal as a fraction, having proved that it lies on the right side; the
next line of the proof goes on with that fraction, as a reader would with pencil and paper.
"""

__all__ = ["Q", "down", "sqrt_down", "sqrt_up", "up"]

import re
from fractions import Fraction
from numbers import Rational

from fedlib._checks import refuse

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
        ValueError: if it is too small, or not a number.
        TypeError: if ``value`` or ``displayed`` is not exact.

    Example:
        >>> up(Q(1, 3), "0.34")
        Fraction(17, 50)

    Reference:
        The proof of Theorem 7.1 (thm-representation). Chapter 7.
    """
    value, decimal = _exact("value", value), _exact("displayed", displayed)
    return _proved(value <= decimal, value, displayed, "larger")


def down(value: Fraction | int, displayed: str) -> Fraction:
    """Round down: prove that ``displayed`` is at most ``value``, and return it; as in ``up``.

    Example:
        >>> down(Q(1, 3), "0.33")
        Fraction(33, 100)
    """
    value, decimal = _exact("value", value), _exact("displayed", displayed)
    return _proved(value >= decimal, value, displayed, "smaller")


def sqrt_up(value: Fraction | int, displayed: str) -> Fraction:
    """Round a square root up: prove that the square of ``displayed`` is at least ``value``.

    Example:
        >>> sqrt_up(2, "1.415")
        Fraction(283, 200)
    """
    value, root = _exact("value", value), _exact("displayed", displayed)
    return _proved(root >= 0 and 0 <= value <= root**2, value, displayed, "larger")


def sqrt_down(value: Fraction | int, displayed: str) -> Fraction:
    """Round a square root down: prove that the square of ``displayed`` is at most ``value``.

    Example:
        >>> sqrt_down(2, "1.414")
        Fraction(707, 500)
    """
    value, root = _exact("value", value), _exact("displayed", displayed)
    return _proved(root >= 0 and value >= root**2, value, displayed, "smaller")


NUMBER = re.compile(
    r"[+-]?(\d{1,1000}/0*[1-9]\d{0,1000}|(\d{1,1000}\.?\d{0,1000}|\.\d{1,1000})(e[+-]?\d{1,3})?)",
    re.ASCII | re.IGNORECASE,
)
"""What ``Fraction`` reads, but for numbers so long that it would take hours."""


def _exact(name: str, value: object) -> Fraction:
    if isinstance(value, str):
        if not NUMBER.fullmatch(value.strip()):
            refuse(name, value, "not a decimal or a fraction", '"0.34" or "1/3"')
        return Fraction(value)
    if isinstance(value, bool) or not isinstance(value, Rational):
        refuse(name, value, "it is not exact", "a Fraction, as Q('0.1')", error=TypeError)
    return Fraction(int(value.numerator), int(value.denominator))


def _proved(holds: bool, value: Fraction, displayed: object, other: str) -> Fraction:
    if not holds:
        try:
            near = f"{float(value):.8g}"
        except OverflowError:
            near = "a number beyond all floats"
        refuse("displayed", displayed, f"on the wrong side, for {near}", f"a {other} decimal")
    return _exact("displayed", displayed)
