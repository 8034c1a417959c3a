r"""Server rules: what the server does with the clients' average, beside plain averaging.

Each moves along :math:`\Delta=\bar\theta-\theta`, the way from the server's parameters to the
clients' average, as an optimiser moves along a gradient.
"""

__all__ = ["ServerRule", "fedadam", "fedavgm", "fedyogi"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedlib._checks import check_number, check_positive
from fedlib.models import Params


class ServerRule(NamedTuple):
    """A server's optimiser, as pure functions; its state is part of a run's checkpoint.

    A plain function ``(params, average, state) -> (params, state)`` serves as well; its state is
    None in the first round, and a checkpoint knows it by its name alone, not by its constants.

    Attributes:
        name: tells the rule and its constants; part of a checkpoint's identity.
        init: ``params -> state`` before the first round: tensors by name, in dicts.
        update: ``(params, average, state) -> (params, state)``, a round's step. It is given the
            parameters that move, returns new tensors for all of them, and changes none that it is
            given.

    Example:
        >>> rule = fedavgm(beta=0.5)
        >>> params, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> params, state = rule.update(params, average, rule.init(params))
        >>> rule.update(params, {"w": torch.full((1,), 2.0)}, state)[0]
        {'w': tensor([2.5000])}
    """

    name: str
    init: Callable[[Params], dict | None]
    update: Callable[[Params, Params, Any], tuple[Params, Any]]


def fedavgm(lr: float = 1.0, beta: float = 0.9) -> ServerRule:
    r"""Return momentum: :math:`v\leftarrow\beta v+\Delta`, :math:`\theta\leftarrow\theta+\eta v`.

    Args:
        lr: step size η of the server, positive.
        beta: share of the velocity that is kept, in [0, 1).

    Reference:
        Hsu, Qi and Brown (2019), Measuring the effects of non-identical data distribution for
        federated visual classification.
    """
    lr, beta = check_positive("lr", lr), check_number("beta", beta, least=0, below=1)

    def update(params: Params, average: Params, state: dict) -> tuple[Params, dict]:
        velocity = {n: beta * v + (average[n] - params[n]) for n, v in state["velocity"].items()}
        moved = {name: p + lr * velocity[name] for name, p in params.items()}
        return moved, {"velocity": velocity}

    return ServerRule(
        f"fedavgm({lr}, {beta})",
        lambda params: {"velocity": {name: torch.zeros_like(p) for name, p in params.items()}},
        update,
    )


def fedadam(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-3
) -> ServerRule:
    r"""Return Adam on the server, as published, without correction of the first rounds' bias.

    :math:`m\leftarrow\beta_1m+(1-\beta_1)\Delta`,
    :math:`v\leftarrow\beta_2v+(1-\beta_2)\Delta^2`, and
    :math:`\theta\leftarrow\theta+\eta\,m/(\sqrt v+\varepsilon)`, from m = 0 and v = ε².

    Args:
        lr: step size η of the server, positive.
        beta1: share of m that is kept, in [0, 1).
        beta2: share of v that is kept, in [0, 1).
        eps: ε, in (0, 1e19]; the larger, the less the steps adapt.

    Reference:
        Reddi et al. (2021), Adaptive federated optimization, Algorithm 2.
    """

    def second(v: Tensor, square: Tensor, beta2: float) -> Tensor:
        return beta2 * v + (1 - beta2) * square

    return _adaptive("fedadam", lr, beta1, beta2, eps, second)


def fedyogi(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-3
) -> ServerRule:
    r"""Return Yogi on the server: ``fedadam`` whose v moves by steps that do not grow with it.

    :math:`v\leftarrow v-(1-\beta_2)\,\Delta^2\operatorname{sign}(v-\Delta^2)`.

    Args:
        lr: as for ``fedadam``, and so are the others.
        beta1: share of m that is kept.
        beta2: one less the weight of new squares.
        eps: ε.

    Reference:
        Reddi et al. (2021), Adaptive federated optimization, Algorithm 2.
    """

    def second(v: Tensor, square: Tensor, beta2: float) -> Tensor:
        return v - (1 - beta2) * square * torch.sign(v - square)

    return _adaptive("fedyogi", lr, beta1, beta2, eps, second)


def _adaptive(
    name: str,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    second: Callable[[Tensor, Tensor, float], Tensor],
) -> ServerRule:
    lr = check_positive("lr", lr)
    beta1 = check_number("beta1", beta1, least=0, below=1)
    beta2 = check_number("beta2", beta2, least=0, below=1)
    eps = check_number("eps", eps, above=0, most=1e19)  # float32 ends at the square

    def init(params: Params) -> dict:
        zeros = {n: torch.zeros_like(p) for n, p in params.items()}
        return {"m": zeros, "v": {n: torch.full_like(p, eps**2) for n, p in params.items()}}

    def update(params: Params, average: Params, state: dict) -> tuple[Params, dict]:
        ways = {n: average[n] - p for n, p in params.items()}
        m = {n: beta1 * state["m"][n] + (1 - beta1) * way for n, way in ways.items()}
        v = {n: second(state["v"][n], way.square(), beta2) for n, way in ways.items()}
        return {n: p + lr * m[n] / (v[n].sqrt() + eps) for n, p in params.items()}, {"m": m, "v": v}

    return ServerRule(f"{name}({lr}, {beta1}, {beta2}, {eps})", init, update)
