"""Rules for one local step: pure functions of parameters and gradients."""

__all__ = [
    "LocalStep",
    "clip_by_global_norm",
    "control_variate",
    "momentum",
    "per_fedavg",
    "proximal",
    "sgd",
    "weight_decay",
]

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedlib._checks import check_callable, check_number, check_positive, check_type

Tensors = list[Tensor]


class LocalStep(NamedTuple):
    """An optimiser that a client starts afresh in every round, as two pure functions.

    The tensors may carry a leading client axis: a rule that acts entry by entry does for a stack of
    clients what it does for one. A rule that takes a norm, a mean or a maximum over entries, such
    as clipping, LARS or LAMB, says ``entrywise=False``: it is given one client at a time, by every
    strategy. A rule is tried before a run: if it does more and does not say so, its clients run
    one by one. That finds most such rules, not all. New values are returned, the same for the same
    numbers; nothing is written in place.

    A rule that draws takes a further argument ``generator`` in ``update``: a ``torch.Generator`` on
    the CPU, keyed by (seed, round, client, step). It is given one client at a time, too, and draws
    the same numbers by every strategy, on every rank, and after resuming.

    Attributes:
        name: tells the rule and its constants; part of a checkpoint's identity.
        init: ``(params, extra) -> state`` before the first step. The state may be anything: None,
            a list, ``(m, v, torch.zeros(()))``. (A counter that is a number is compiled in, and
            each value compiled anew by the strategy "compiled"; a tensor is not.) ``extra`` is the
            client's part of the ``client_state`` that ``map_clients`` was given, one tensor per
            parameter, or None.
        update: ``(params, grads, state, lr) -> (params, state)``, one step of size ``lr``: a
            float, or in compiled steps a scalar tensor.
        period: steps that belong together; the number of local steps must be a multiple of it.
        entrywise: whether the rule acts entry by entry.

    Example:
        >>> sign = LocalStep(
        ...     "sign",
        ...     lambda params, extra: None,
        ...     lambda params, grads, state, lr: (
        ...         [p - lr * g.sign() for p, g in zip(params, grads, strict=True)],
        ...         state,
        ...     ),
        ... )
        >>> sign.update([torch.zeros(2)], [torch.tensor([3.0, -5.0])], None, 0.1)
        ([tensor([-0.1000,  0.1000])], None)
    """

    name: str
    init: Callable[[Tensors, Tensors | None], object]
    update: Callable[..., tuple[Tensors, object]]
    period: int = 1
    entrywise: bool = True


def _descend(params: Tensors, directions: Tensors, lr: float | Tensor) -> Tensors:
    if isinstance(lr, Tensor):
        return [p - lr * d for p, d in zip(params, directions, strict=True)]
    # One call for all tensors: each call hands Python's lock to other threads and back.
    return list(torch._foreach_add(params, directions, alpha=-lr))


sgd = LocalStep(
    "sgd",
    lambda params, extra: None,
    lambda params, grads, state, lr: (_descend(params, grads, lr), None),
)
r"""Stochastic gradient descent, :math:`\theta\leftarrow\theta-\alpha g`: FedAvg's own rule."""


def momentum(beta: float = 0.9) -> LocalStep:
    r"""Return SGD with heavy-ball momentum.

    :math:`v\leftarrow\tilde\beta v+g`, then :math:`\theta\leftarrow\theta-\alpha v`. The velocity
    is zero at the start of every round.

    Args:
        beta: share of the velocity that is kept, in [0, 1).

    Returns:
        The rule; equal to ``torch.optim.SGD(..., momentum=beta)``.
    """
    beta = check_number("beta", beta, least=0, below=1)

    def update(params, grads, velocity, lr):
        velocity = [torch.add(g, v, alpha=beta) for v, g in zip(velocity, grads, strict=True)]
        return _descend(params, velocity, lr), velocity

    return LocalStep(
        f"momentum({beta})", lambda params, extra: [torch.zeros_like(p) for p in params], update
    )


def proximal(mu: float) -> LocalStep:
    r"""Return SGD on the loss plus a pull towards where the client began the round.

    The pull is the gradient of :math:`\frac{\mu_{\mathrm{prox}}}2|\theta-\theta_t|^2`. A client
    begins at the server's parameters, unless ``client_params`` gives it others. (For a pull to the
    server beside those, see Ditto in *Your own method in 40 lines*.)

    Args:
        mu: weight of the proximal term, positive.

    Returns:
        The local rule of FedProx.

    Reference:
        Li et al. (2020), Federated optimization in heterogeneous networks.
    """
    mu = check_positive("mu", mu)

    def update(params, grads, start, lr):
        pulls = [g + mu * (p - p0) for p, g, p0 in zip(params, grads, start, strict=True)]
        return _descend(params, pulls, lr), start

    return LocalStep(f"proximal({mu})", lambda params, extra: params, update)


def per_fedavg(inner_lr: float) -> LocalStep:
    r"""Return first-order meta-learning: a trial step, then a step by the gradient found there.

    Steps come in pairs, so the number of local steps must be even:
    :math:`\theta'=\theta-\alpha_{\text{in}}\,g(\theta)`, then
    :math:`\theta\leftarrow\theta-\alpha\,g'(\theta')`, each gradient on a batch of its own. This
    descends the loss *after* one step of adaptation, but for the second derivatives, which are
    left out.

    Args:
        inner_lr: step size of the trial steps, positive. It should be the one that clients adapt
            with later.

    Returns:
        The local rule of first-order Per-FedAvg; with one pair per round, of first-order MAML.

    Reference:
        Fallah, Mokhtari and Ozdaglar (2020), Personalized federated learning with theoretical
        guarantees: a model-agnostic meta-learning approach.
    """
    inner_lr = check_positive("inner_lr", inner_lr)

    def update(params, grads, start, lr):
        if start is None:
            return _descend(params, grads, inner_lr), params
        return _descend(start, grads, lr), None

    return LocalStep(f"per_fedavg({inner_lr})", lambda params, extra: None, update, period=2)


def weight_decay(rate: float, rule: LocalStep = sgd) -> LocalStep:
    r"""Return a rule whose gradients pull parameters to zero: :math:`g+\lambda\theta`.

    Args:
        rate: weight λ of the penalty :math:`\frac{\lambda}{2}\lVert\theta\rVert^2`, positive.
        rule: what is done with these gradients.

    Returns:
        The rule; over ``sgd``, equal to ``torch.optim.SGD(..., weight_decay=rate)``.
    """
    rate = check_positive("rate", rate)
    check_type("rule", rule, LocalStep, "Use sgd, momentum(0.9) or a LocalStep.")

    def change(params: Tensors, grads: Tensors) -> Tensors:
        return [torch.add(g, p, alpha=rate) for p, g in zip(params, grads, strict=True)]

    return _with_gradients(f"weight_decay({rate}, {rule.name})", rule, change)


def clip_by_global_norm(max_norm: float, rule: LocalStep = sgd) -> LocalStep:
    r"""Return a rule whose gradients are no longer than ``max_norm``, over all parameters.

    :math:`g\min(1,c/\lVert g\rVert)`, with the length of the client's whole gradient.

    Args:
        max_norm: the length c, positive.
        rule: what is done with these gradients.

    Returns:
        The rule; what ``torch.nn.utils.clip_grad_norm_`` before each step does, but for the 1e-6
        that it adds to the length.

    Example:
        >>> rule = clip_by_global_norm(5.0)
        >>> rule.update([torch.zeros(2)], [torch.tensor([6.0, 8.0])], None, 1.0)
        ([tensor([-3., -4.])], None)
    """
    max_norm = check_positive("max_norm", max_norm)
    check_type("rule", rule, LocalStep, "Use sgd, momentum(0.9) or a LocalStep.")

    def change(params: Tensors, grads: Tensors) -> Tensors:
        length = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
        scale = (max_norm / length).clamp(max=1)  # infinite, and so 1, for a gradient of zero
        return [g * scale for g in grads]

    name = f"clip_by_global_norm({max_norm}, {rule.name})"
    return _with_gradients(name, rule, change)._replace(entrywise=False)


def _with_gradients(
    name: str, rule: LocalStep, change: Callable[[Tensors, Tensors], Tensors]
) -> LocalStep:
    """Return a rule that is given changed gradients."""
    check_callable("rule.update", rule.update, "Write it as LocalStep says.")
    draws = "generator" in inspect.signature(rule.update).parameters

    def update(params, grads, state, lr):
        return rule.update(params, change(params, grads), state, lr)

    def drawing(params, grads, state, lr, generator):
        return rule.update(params, change(params, grads), state, lr, generator=generator)

    return rule._replace(name=name, update=drawing if draws else update)


def _correct(params: Tensors, extra: Tensors | None) -> Tensors:
    if extra is None:
        raise ValueError(
            "Invalid client_state=None: control_variate corrects each client's gradients. "
            "Give map_clients the corrections as client_state, one row per client of the cohort."
        )
    return extra


control_variate = LocalStep(
    "control_variate",
    _correct,
    lambda params, grads, correction, lr: (
        _descend(params, [g + c for g, c in zip(grads, correction, strict=True)], lr),
        correction,
    ),
)
r"""SGD with a fixed correction of each client's gradients, the local rule of SCAFFOLD.

:math:`\theta\leftarrow\theta-\alpha(g-\hat g_i+\hat g)`; ``extra`` holds :math:`\hat g-\hat g_i`.
Karimireddy et al. (2020), SCAFFOLD: stochastic controlled averaging for federated learning.
"""
