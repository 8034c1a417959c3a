"""Checks shared by the public functions: one sentence with argument, value, rule and remedy.

The scheme, for every public function: each argument passes through one of these, once, before work
starts, and the function goes on with what the check *returns* (a Python number, an array of known
type), never with what it was given. So a NumPy integer of eight bits cannot overflow later, a
string that looks like a number is refused here, and no exception from inside NumPy or torch is what
tells a reader that an argument was wrong.
"""

__all__ = [
    "check_array",
    "check_bool",
    "check_callable",
    "check_in",
    "check_indices",
    "check_int",
    "check_names",
    "check_number",
    "check_path",
    "check_positive",
    "check_positive_int",
    "check_rng",
    "check_step_size",
    "check_tensor",
    "check_type",
    "outside",
    "refuse",
    "shown",
]

import math
import os
import sys
from collections.abc import Collection, Iterable, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

LARGEST_INT = 2**63 - 1


def shown(value: object) -> str:
    """Return a value as a message shows it: whole if it is short, else its type and size.

    Example:
        >>> shown(-1), shown(np.zeros((200, 3)))
        ('-1', 'an ndarray of shape (200, 3), float64')
    """
    if isinstance(value, np.ndarray | Tensor) and value.ndim:
        article = "an" if isinstance(value, np.ndarray) else "a"
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{article} {type(value).__name__} of shape {tuple(value.shape)}, {dtype}"
    try:
        text = repr(value)
    except Exception:  # a repr of the user's own
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"


def refuse(
    name: str, value: object, why: str, use: str, *, error: type[Exception] = ValueError
) -> NoReturn:
    """Raise the one kind of message that fedlib has.

    Example:
        >>> refuse("num_clients", 200, "only 150 examples", "num_clients <= 150")
        Traceback (most recent call last):
        ...
        ValueError: Invalid num_clients=200: only 150 examples. Use num_clients <= 150.
    """
    raise error(f"Invalid {name}={shown(value)}: {why}. Use {use}.")


def check_int(name: str, value: object, minimum: int, maximum: int = LARGEST_INT) -> int:
    """Return a whole number in [minimum, maximum] as a Python integer.

    Raises:
        TypeError: if ``value`` is not an integer (a bool is not one).
        ValueError: if ``value`` is less than ``minimum`` or more than ``maximum``.

    Example:
        >>> check_int("seed", np.uint8(7), minimum=0)
        7
        >>> check_int("seed", -1, minimum=0)
        Traceback (most recent call last):
        ...
        ValueError: Invalid seed=-1: must be at least 0. Use seed >= 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(name, value, "not an integer", f"{name}={minimum} or more", error=TypeError)
    value = int(value)
    if value < minimum:
        refuse(name, value, f"must be at least {minimum}", f"{name} >= {minimum}")
    if value > maximum:
        refuse(name, value, f"must be at most {maximum}", f"{name} <= {maximum}")
    return value


def check_positive_int(name: str, value: object) -> int:
    """Return a whole number of at least 1; raises as ``check_int``."""
    return check_int(name, value, minimum=1)


def check_number(
    name: str,
    value: object,
    *,
    above: float | int | None = None,
    least: float | int | None = None,
    below: float | int | None = None,
    most: float | int | None = None,
) -> float:
    """Return a finite real number between bounds as a Python float.

    Args:
        name: the argument.
        value: what was given for it.
        above: the number must be greater than this.
        least: the number must be at least this.
        below: the number must be less than this.
        most: the number must be at most this.

    Raises:
        TypeError: if ``value`` is not a real number (a bool is not one).
        ValueError: if it is infinite, NaN, or outside the bounds.

    Example:
        >>> check_number("beta", 1.0, least=0, below=1)
        Traceback (most recent call last):
        ...
        ValueError: Invalid beta=1.0: must be a finite number >= 0 and < 1. Use one in that range.
    """
    bounds = {">": above, ">=": least, "<": below, "<=": most}
    wanted = " and ".join(
        f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None
    )
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        use = f"a number {wanted}" if wanted else "a finite number"
        refuse(name, value, "not a number", use, error=TypeError)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    fits = (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    )
    if not fits:
        rule = f"must be a finite number {wanted}".rstrip()
        refuse(name, value, rule, "one in that range" if wanted else "a finite number")
    return number


def check_positive(name: str, value: object) -> float:
    """Return a positive, finite real number as a Python float; raises as ``check_number``.

    Example:
        >>> check_positive("lr", 0)
        Traceback (most recent call last):
        ...
        ValueError: Invalid lr=0: not positive and finite. Use a number > 0.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        refuse(name, value, "not a number", "a number > 0", error=TypeError)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (number > 0 and math.isfinite(number)):
        refuse(name, value, "not positive and finite", "a number > 0")
    return number


def check_step_size(name: str, value: object) -> float:
    """Return a positive number that every type of parameter can hold; raises as ``check_number``.

    Example:
        >>> check_step_size("lr", 1e308)
        Traceback (most recent call last):
        ...
        ValueError: Invalid lr=1e+308: more than single precision holds. Use lr <= 1e38.
    """
    value = check_positive(name, value)
    if value > 1e38:
        refuse(name, value, "more than single precision holds", f"{name} <= 1e38")
    return value


def check_bool(name: str, value: object) -> bool:
    """Return True or False; nothing else stands for them.

    Raises:
        TypeError: if ``value`` is neither.
    """
    if not isinstance(value, bool | np.bool_):
        refuse(
            name, value, "neither True nor False", f"{name}=True or {name}=False", error=TypeError
        )
    return bool(value)


def check_in(name: str, value: T, options: Iterable[T]) -> T:
    """Return a value that is one of ``options``.

    Raises:
        ValueError: if ``value`` is none of them; the message lists them.
    """
    options = list(options)
    for option in options:
        if value is option or (type(value) is type(option) and value == option):
            return option
    listed = " or ".join(f"{name}={option!r}" for option in options)
    refuse(name, value, "not an option", listed)


def check_names(name: str, value: Any) -> Collection[str]:
    """Return a collection of strings; one string is none.

    Raises:
        TypeError: if it is something else.
    """
    fits = isinstance(value, Sequence | Set) and not isinstance(value, str | bytes)
    if not fits or not all(isinstance(part, str) for part in value):
        use = "a list of names of parameters"
        refuse(name, value, "not a collection of names", use, error=TypeError)
    return value


def check_type(name: str, value: object, kind: type[T], remedy: str) -> T:
    """Return a value that is a ``kind``; ``remedy`` is the sentence that says what to do.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"Invalid {name} of type {type(value).__name__}: not a {kind.__name__}. {remedy}"
        )
    return value


def check_callable(name: str, value: T, remedy: str) -> T:
    """Return a value that can be called; ``remedy`` is the sentence that says what to give.

    Raises:
        TypeError: if it cannot.
    """
    if not callable(value):
        raise TypeError(f"Invalid {name} of type {type(value).__name__}: not callable. {remedy}")
    return value


def check_rng(rng: object) -> np.random.Generator:
    """Return a NumPy generator.

    Raises:
        TypeError: if ``rng`` is a seed, a legacy ``RandomState``, or something else.
    """
    if not isinstance(rng, np.random.Generator):
        refuse("rng", rng, "not a NumPy generator", "rng=np.random.default_rng(0)", error=TypeError)
    return rng


def check_path(name: str, value: object, *, room: int = 0) -> Path:
    """Return a path, with ``~`` replaced by the user's home.

    Args:
        name: the argument.
        value: what was given for it.
        room: bytes that are left free for names that begin with the path's last part.

    Raises:
        TypeError: if ``value`` is not a string or a path.
        ValueError: if it is empty, no file can be named so, or the name is too long.
    """
    if not isinstance(value, str | os.PathLike):
        refuse(
            name, value, "not a path", f'a path such as {name}="run.safetensors"', error=TypeError
        )
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        refuse(name, value, "not the name of a file", f'a path such as {name}="run.safetensors"')
    try:
        path.encode()
        path = Path(path).expanduser()
    except UnicodeEncodeError:
        refuse(name, ascii(value), "not the name of a file in UTF-8", "letters that Unicode has")
    except RuntimeError:
        refuse(name, value, "its user's home is not known", "a path without ~")
    *folders, last = (len(part.encode()) for part in path.parts or ("",))
    if max(folders, default=0) > 255 or last + room > 255 or len(str(path).encode()) + room > 4000:
        refuse(name, value, "too long for the name of a file", f"up to {255 - room} bytes a name")
    return path


def check_array(
    name: str,
    value: object,
    shape: Sequence[int | None] | None = None,
    *,
    kinds: str = "iuf",
    finite: bool = True,
    what: str | None = None,
) -> np.ndarray:
    """Return real numbers as an array: of the kinds of type asked for, finite, of a shape.

    Args:
        name: the argument.
        value: an array, a tensor, or nested sequences of numbers.
        shape: one size for each axis, None for any from 1 up; None instead of a shape allows all.
        kinds: letters of NumPy's types: "iu" for integers, "iuf" for real numbers.
        finite: refuse NaN and infinity.
        what: what the message says the entries should be; None for what ``kinds`` are.

    Returns:
        The array, in the type that it has, but float64 instead of a longer float; not copied if it
        is one already.

    Raises:
        TypeError: if the entries are of another type.
        ValueError: if rows are of different lengths, the shape does not fit, or an entry is not
            finite.
    """
    if isinstance(value, Tensor):
        value = check_tensor(name, value).detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"Invalid {name}: some entries are masked. Use an array without a mask.")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged, or odd things inside
        raise ValueError(
            f"Invalid {name}: its rows are of different lengths. Use rows of one length."
        ) from None
    if not array.size and not hasattr(value, "dtype"):
        array = array.astype(np.int64)  # an empty list has no type of its own
    if array.dtype.kind not in kinds:
        what = what or ("real numbers" if "f" in kinds else "integers")
        raise TypeError(
            f"Invalid {name} of type {array.dtype}: not {what}. Use an array of {what}."
        )
    if shape is not None:
        fits = array.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or 0 in array.shape:
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise ValueError(f"Invalid {name}: its shape is {array.shape}. Use shape ({wanted}).")
    if array.dtype.kind == "f" and array.itemsize > 8:
        with np.errstate(over="ignore"):  # infinite where float64 ends
            array = array.astype(np.float64)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"Invalid {name}: NaN or infinity. Use finite numbers.")
    return array


def check_tensor(name: str, value: Tensor) -> Tensor:
    """Return a tensor that holds real numbers, each at its place in memory.

    Raises:
        TypeError: if it is sparse, complex, quantised, of a byte each, or without values ("meta").
    """
    tiny = value.is_floating_point() and value.itemsize < 2
    if value.is_complex() or value.is_quantized or tiny:
        raise TypeError(
            f"Invalid {name} of type {value.dtype}: not real numbers of two bytes or more. "
            "Use torch.view_as_real, say, or .float()."
        )
    if value.layout != torch.strided or value.is_meta:
        kind = "on the device meta, which holds no values" if value.is_meta else str(value.layout)
        raise TypeError(f"Invalid {name}: it is {kind}. Use a dense tensor, as .to_dense() makes.")
    return value.resolve_neg()  # a view of torch's that NumPy cannot read


def check_indices(
    name: str, value: object, size: int, *, mask: bool = False, error: type = ValueError
) -> np.ndarray:
    """Return positions among ``size`` things as int64; there may be none.

    Args:
        name: the argument.
        value: positions from 0 to size - 1, in a list, an array or a tensor of one axis.
        size: how many things there are.
        mask: accept one True or False for each of them as well.
        error: what is raised for a position that is not there.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are not in one row, or a mask is of another length.

    Example:
        >>> check_indices("ids", [2, 0], 3), check_indices("ids", [True, False, True], 3, mask=True)
        (array([2, 0]), array([0, 2]))
    """
    index = check_array(name, value, kinds="biuf", finite=False, what="integers")
    if index.ndim != 1:
        raise ValueError(f"Invalid {name} of shape {index.shape}: not one row. Use a list of them.")
    if mask and index.dtype == bool:
        if len(index) != size:
            raise ValueError(
                f"Invalid {name}: a mask of {len(index)} for {size}. Use one of length {size}."
            )
        return np.flatnonzero(index)
    if index.dtype.kind not in "iu" and index.size:
        remedy = "np.flatnonzero(mask) for a mask" if index.dtype == bool else "whole numbers"
        raise TypeError(f"Invalid {name} of type {index.dtype}: not integers. Use {remedy}.")
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise error(
            f"Invalid {name}: positions reach from {index.min()} to {index.max()}, but there are "
            f"{size}. Use positions 0..{size - 1}."
        )
    return index.astype(np.int64)


def outside() -> int:
    """Return how many calls up the user's own line is, as ``warnings.warn`` counts them."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("fedlib."):
        frame, level = frame.f_back, level + 1
    return level
