"""How well parameters do on every client, and how sure a mean over seeds is."""

__all__ = ["Interval", "evaluate", "mean_interval"]

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from fedlib._checks import check_array, check_callable, check_in, check_number, check_positive_int
from fedlib.clients import ClientData
from fedlib.losses import Loss, losses_by
from fedlib.models import Params
from fedlib.validate import Ready, check_clients, check_model, own_modes, untouched


def evaluate(
    model: nn.Module,
    params: Params | Sequence[Params],
    clients: ClientData,
    *,
    metric: str | Loss = "accuracy",
    chunk: int = 2000,
) -> Float[np.ndarray, " m"]:
    """Evaluate parameters on every client's examples.

    Args:
        model: gives the architecture.
        params: one set for all clients, or one set per client, as ``fine_tune`` returns.
        clients: M clients.
        metric: "accuracy", the fraction of examples whose largest output is at the label; or
            "loss", the mean task loss; or ``(outputs, targets) -> scores``, a function that gives
            one number per example, whose mean over a client's examples is returned.
        chunk: examples per forward pass, which bounds memory.

    Returns:
        One number per client, float64 of shape (M,).

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if there is not one set of parameters per client, they or the data do not fit
            the model, or accuracy is asked for real targets.

    Example:
        >>> clients = ClientData(torch.eye(2), torch.tensor([0, 0]), np.array([1, 1]))
        >>> evaluate(nn.Identity(), {}, clients)
        array([1., 0.])
    """
    own = None if isinstance(metric, str) else metric
    if own is None:
        check_in("metric", metric, ["accuracy", "loss"])
    else:
        check_callable("metric", own, 'Use "accuracy", "loss" or (outputs, targets) -> scores.')
    chunk = check_positive_int("chunk", chunk)
    check_clients(clients)
    if metric == "accuracy" and clients.targets.is_floating_point():
        raise ValueError('Invalid metric="accuracy": the targets are real. Use metric="loss".')
    if isinstance(params, dict):
        ready = check_model(model, params, clients, own)
        each = _scores(ready, params, clients.inputs, clients.targets, metric, chunk)
        return np.add.reduceat(each, clients.starts) / clients.sizes
    each_its_own = isinstance(params, Sequence) and all(isinstance(p, dict) for p in params)
    if not each_its_own or len(params) != clients.num_clients:
        raise ValueError(
            f"Invalid params: not one dict for each of {clients.num_clients} clients. Give what "
            "fine_tune returns, or a single dict for all, such as result.params."
        )
    for client in params:
        ready = check_model(model, client, clients, own)
    return np.array(
        [_scores(ready, params[i], *clients[i], metric, chunk).mean() for i in range(len(clients))]
    )


def _scores(
    ready: Ready, params: Params, inputs: Tensor, targets: Tensor, metric: str | Loss, chunk: int
) -> np.ndarray:
    """Return one score per example."""
    scores = []
    with own_modes(inputs.device, grad=False):
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            with untouched(x):
                outputs = ready.replica()(params, x)
            if metric == "accuracy":
                largest, found = outputs.max(1)  # NaN counts as the largest, but names no class
                scores.append((found == y) & ~largest.isnan())
            else:
                scores.append(losses_by(ready.loss, outputs, y))
    return torch.cat(scores).double().cpu().numpy()


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def mean_interval(
    values: Real[np.ndarray, " n"] | Sequence[float], *, level: float = 0.95
) -> Interval:
    """Return the mean of independent runs with Student's confidence interval.

    Args:
        values: one number per run, at least two.
        level: coverage, in (0, 1).

    Returns:
        Mean and half-width: ``mean ± half_width`` covers the true mean with the given probability
        if runs are independent and normal.

    Raises:
        TypeError: if values are not real numbers, or the level is not a number.
        ValueError: if there are fewer than two values, one is not finite, or the level is not
            between 0 and 1.

    Example:
        >>> str(mean_interval([0.0, 1.0, 2.0]))
        '1.000 ± 2.484'
    """
    from scipy.special import stdtrit  # half a second to load

    values = check_array("values", values).astype(np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"Invalid values of shape {values.shape}: an interval needs at least two runs. "
            "Use one number per run."
        )
    level = check_number("level", level, above=0, below=1)
    _, exponent = np.frexp(np.abs(values).max())
    small = np.ldexp(values, -exponent)  # so that no sum or square over- or underflows
    spread = small.std(ddof=1) / np.sqrt(len(small))
    quantile = -stdtrit(len(small) - 1, (1 - level) / 2)
    mean, half_width = np.ldexp([small.mean(), quantile * spread], exponent)
    return Interval(float(mean), float(half_width))
