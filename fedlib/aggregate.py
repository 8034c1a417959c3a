"""What the server does with the clients' parameters."""

__all__ = ["server_step", "weighted_average"]

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Real
from torch import Tensor

from fedlib._checks import check_array, check_number, check_type
from fedlib.models import Params


def weighted_average(params: Sequence[Params], weights: Real[np.ndarray, " m"]) -> Params:
    r"""Average the clients' parameters, :math:`\sum_i p_i\theta_i/\sum_i p_i`.

    Args:
        params: one set of parameters per client, alike in names, shapes and dtypes.
        weights: one weight per client, not negative; FedAvg takes numbers of examples. A client of
            weight zero does not count, whatever its parameters are.

    Returns:
        The average, name by name: summed in float64, and rounded once to the parameters' dtype.

    Raises:
        TypeError: if ``params`` is not a sequence of dicts of dense tensors, or weights are not
            numbers.
        ValueError: if there is no client, clients' parameters differ in more than their values,
            there is not one weight per client, one is negative or not finite, or all are zero.

    Example:
        >>> weighted_average([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], np.array([1, 3]))
        {'w': tensor([0.7500, 0.7500])}
    """
    check_type("params", params, Sequence, "Use a list with one dict of parameters per client.")
    if not len(params):
        raise ValueError("Invalid params: none. Give the parameters of one client at least.")
    for i, client in enumerate(params):
        _check_alike(f"params[{i}]", client, params[0], "params[0]")
    weights = check_array("weights", weights, (len(params),)).astype(np.float64)
    if weights.min() < 0 or not weights.any():
        raise ValueError(
            f"Invalid weights={weights.tolist()}: must not be negative, and not all zero. "
            "Use the clients' numbers of examples."
        )
    shares = weights / weights.max()  # so that no sum overflows
    counted = np.flatnonzero(shares)
    portions = (shares / shares.sum())[counted].tolist()
    first, *others = zip(portions, counted.tolist(), strict=True)
    average = {}
    for name, value in params[first[1]].items():
        # Summed in float64: in bfloat16 the sum of a thousand ones' shares stops at one half.
        total = first[0] * value.to(torch.complex128 if value.is_complex() else torch.float64)
        for share, i in others:
            total.add_(params[i][name], alpha=share)
        average[name] = total.to(value.dtype)
    return average


def server_step(params: Params, average: Params, *, server_lr: float = 1.0) -> Params:
    r"""Move from the old parameters towards the average, :math:`\theta+\beta(\bar\theta-\theta)`.

    Args:
        params: the server's parameters before the round.
        average: the clients' weighted average.
        server_lr: step size β of the server, positive; 1 replaces the old parameters by the
            average.

    Returns:
        The server's parameters after the round.

    Raises:
        TypeError: if parameters are not dicts of dense tensors, or the step size is not a number.
        ValueError: if the two differ in more than their values, a parameter is not of floating
            point, or the step size is not positive.

    Example:
        >>> server_step({"w": torch.zeros(1)}, {"w": torch.ones(1)}, server_lr=0.5)
        {'w': tensor([0.5000])}
    """
    server_lr = check_number("server_lr", server_lr, above=0, most=1e38)  # float32 ends there
    _check_alike("params", params, params, "params")
    _check_alike("average", average, params, "params")
    return {name: torch.lerp(p, average[name], server_lr) for name, p in params.items()}


def _check_alike(name: str, params: Params, others: Params, other_name: str) -> None:
    """Refuse parameters that are not floating-point tensors, or not like others but for values."""
    check_type(name, params, dict, "Use params_of(model), or the params of a result.")
    for key, value in params.items():
        check_type(f"{name}[{key!r}]", value, Tensor, "Use params_of(model).")
        if not (value.is_floating_point() or value.is_complex()):
            raise ValueError(
                f"Invalid {name}[{key!r}] of type {value.dtype}: whole numbers have no average. "
                "Leave it out, or use .float()."
            )
        small = value.itemsize < 2 or value.dtype == torch.complex32
        if small or value.layout != torch.strided or value.is_meta:
            raise TypeError(
                f"Invalid {name}[{key!r}] of {value.dtype}, {value.layout}, {value.device}: torch "
                "has no average of it. Use dense tensors of float16 or wider, or of complex64."
            )
    odd = params.keys() ^ others.keys() or [
        key for key, p in params.items() if _kind(p) != _kind(others[key])
    ]
    if odd:
        raise ValueError(
            f"Invalid {name}: {min(map(str, odd))} is missing in it or in {other_name}, or of "
            "another shape, dtype or device. Use parameters of one model."
        )


def _kind(p: Tensor) -> tuple:
    return p.shape, p.dtype, p.device, p.layout
