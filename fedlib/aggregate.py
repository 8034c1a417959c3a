"""What the server does with the clients' parameters."""

__all__ = ["server_step", "weighted_average"]

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Real

from fedlib.models import Params


def weighted_average(params: Sequence[Params], weights: Real[np.ndarray, " m"]) -> Params:
    r"""Average the clients' parameters, :math:`\sum_i p_i\theta_i/\sum_i p_i`.

    Args:
        params: one set of parameters per client.
        weights: one weight per client, not negative; FedAvg takes numbers of examples.

    Returns:
        The average, name by name.

    Raises:
        ValueError: if there is not one weight per client, one is negative, or all are zero.

    Example:
        >>> weighted_average([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], np.array([1, 3]))
        {'w': tensor([0.7500, 0.7500])}
    """
    weights = np.asarray(weights)
    if len(weights) != len(params) or weights.min() < 0 or not 0 < weights.sum() < np.inf:
        raise ValueError(
            f"Invalid weights={weights.tolist()}: must be one per client, not negative, with a "
            "positive sum. Use the clients' numbers of examples."
        )
    shares = (np.asarray(weights) / np.sum(weights)).tolist()
    average = {name: shares[0] * value for name, value in params[0].items()}
    for share, client in zip(shares[1:], params[1:], strict=True):
        for name, total in average.items():
            total.add_(client[name], alpha=share)
    return average


def server_step(params: Params, average: Params, *, server_lr: float = 1.0) -> Params:
    r"""Move from the old parameters towards the average, :math:`\theta+\beta(\bar\theta-\theta)`.

    Args:
        params: the server's parameters before the round.
        average: the clients' weighted average.
        server_lr: step size β of the server; 1 replaces the old parameters by the average.

    Returns:
        The server's parameters after the round.

    Example:
        >>> server_step({"w": torch.zeros(1)}, {"w": torch.ones(1)}, server_lr=0.5)
        {'w': tensor([0.5000])}
    """
    return {name: torch.lerp(p, average[name], server_lr) for name, p in params.items()}
