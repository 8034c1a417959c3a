"""Checks shared by the public functions: each raises one sentence with value, rule and remedy."""

__all__ = [
    "check_in",
    "check_int",
    "check_positive",
    "check_positive_int",
    "check_rng",
    "check_type",
]

import math
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np


def check_int(name: str, value: object, minimum: int) -> None:
    """Refuse a value that is not a whole number, or is below ``minimum``.

    Raises:
        TypeError: if ``value`` is not an integer (a bool is not one).
        ValueError: if ``value`` is less than ``minimum``.

    Example:
        >>> check_int("seed", -1, minimum=0)
        Traceback (most recent call last):
        ...
        ValueError: Invalid seed=-1: must be at least 0. Use seed >= 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Invalid {name}={value!r}: not an integer. Use {name}={minimum} or more.")
    if value < minimum:
        raise ValueError(
            f"Invalid {name}={value}: must be at least {minimum}. Use {name} >= {minimum}."
        )


def check_positive_int(name: str, value: object) -> None:
    """Refuse a value that is not a whole number of at least 1; raises as ``check_int``."""
    check_int(name, value, minimum=1)


def check_positive(name: str, value: object) -> None:
    """Refuse a value that is not a positive, finite real number.

    Raises:
        TypeError: if ``value`` is not a real number.
        ValueError: if ``value`` is zero, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {name}={value!r}: not a number. Use a number > 0.")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"Invalid {name}={value}: not positive and finite. Use a number > 0.")


def check_in(name: str, value: object, options: Iterable[object]) -> None:
    """Refuse a value that is not one of ``options``.

    Raises:
        ValueError: if ``value`` is none of them; the message lists them.
    """
    options = list(options)
    if value not in options:
        listed = " or ".join(f"{name}={option!r}" for option in options)
        raise ValueError(f"Invalid {name}={value!r}: not an option. Use {listed}.")


def check_type(name: str, value: object, kind: type, remedy: str) -> None:
    """Refuse a value that is not a ``kind``; ``remedy`` is the sentence that says what to do.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"Invalid {name} of type {type(value).__name__}: not a {kind.__name__}. {remedy}"
        )


def check_rng(rng: object) -> None:
    """Refuse anything but a NumPy generator.

    Raises:
        TypeError: if ``rng`` is a seed, a legacy ``RandomState``, or something else.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"Invalid rng={rng!r}: not a NumPy generator. Use rng=np.random.default_rng(0)."
        )
