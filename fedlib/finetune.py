"""Adaptation of the server's model to clients, one by one."""

__all__ = ["fine_tune"]

from functools import partial

import numpy as np
from torch import nn

from fedlib._checks import check_in, check_int, check_positive, check_positive_int
from fedlib.batches import draw_batches
from fedlib.clients import ClientData
from fedlib.engine import Strategy, Trained, train_cohort
from fedlib.local import check_model
from fedlib.models import BodyHead, Params
from fedlib.represent import features


def fine_tune(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    *,
    steps: int,
    lr: float,
    batch_size: int | None,
    part: str = "all",
    seed: int,
    strategy: str | Strategy = "auto",
) -> list[Params]:
    """Fine-tune the same parameters on every client separately, by SGD.

    Client i draws its batches from a generator keyed by (seed, i), whoever else takes part.

    Args:
        model: gives the architecture.
        params: where every client starts.
        clients: M clients; a client of the training federation or a new one.
        steps: SGD steps of every client.
        lr: step size.
        batch_size: examples per step; None, or more than a client has, takes all.
        part: "all"; or "head" or "body", to move only parameters whose names begin so.
        seed: keys the batches, at least 0.
        strategy: how clients are run side by side; see ``run_fedavg``. If only the head of a
            ``BodyHead`` moves, features are computed once and the heads are run as a net of
            their own.

    Returns:
        One set of parameters per client; tensors that do not move are shared with ``params``.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument is out of range, the model does not fit, or lacks the part.
        FloatingPointError: if a client's parameters stop being finite.

    Example:
        >>> import torch, fedlib as fl
        >>> clients = ClientData(torch.ones(2, 3), torch.ones(2), np.array([1, 1]))
        >>> model = fl.LinearNet(3, 2)
        >>> personal = fine_tune(
        ...     model,
        ...     fl.params_of(model),
        ...     clients,
        ...     steps=50,
        ...     lr=0.5,
        ...     batch_size=None,
        ...     part="head",
        ...     seed=0,
        ... )
        >>> fl.evaluate(model, personal, clients, metric="loss").round(3)
        array([0., 0.])

    Reference:
        Collins et al. (2022); Chapters 3 and 10.
    """
    check_positive_int("steps", steps)
    check_positive("lr", lr)
    check_in("part", part, ["all", "head", "body"])
    check_int("seed", seed, minimum=0)
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    check_model(model, params, clients)
    trainable = [name for name in params if part == "all" or name.startswith(f"{part}.")]
    if not trainable:
        raise ValueError(
            f'Invalid part="{part}": the model has no parameter named "{part}.…". Use part="all", '
            "or give the model a body and a head, as BodyHead does."
        )
    draw = partial(draw_batches, local_steps=steps, batch_size=batch_size)
    batches = [
        draw(int(size), rng=np.random.default_rng([seed, i]))
        for i, size in enumerate(clients.sizes)
    ]
    everyone, how = np.arange(clients.num_clients), dict(lr=lr, strategy=strategy)
    exact = isinstance(strategy, str) or strategy.autocast is None
    if part == "head" and exact and _is_body_then_head(model):
        stacks = _train_heads(model, params, clients, everyone, batches, how)
    else:
        how["trainable"] = trainable
        stacks = train_cohort(model, params, clients, everyone, batches, **how)
    personal: list[Params] = [params] * clients.num_clients
    for stack in stacks:
        for row, client in enumerate(stack.places):
            moved = {name: stack.params[name][row] for name in trainable}
            if not all(bool(p.isfinite().all()) for p in moved.values()):
                raise FloatingPointError(
                    f"Fine-tuning diverged on client {client}. Use an lr smaller than {lr}."
                )
            personal[client] = params | moved
    return personal


def _is_body_then_head(model: nn.Module) -> bool:
    hooks = model._forward_pre_hooks or model._forward_hooks
    return type(model).forward is BodyHead.forward and "forward" not in vars(model) and not hooks


def _train_heads(
    model: BodyHead,
    params: Params,
    clients: ClientData,
    cohort: np.ndarray,
    batches: list[np.ndarray],
    how: dict,
) -> list[Trained]:
    """Train heads on features computed once: a body that stays gives the same at every step."""
    head = {n.removeprefix("head."): p for n, p in params.items() if n.startswith("head.")}
    inputs = features(model, params, clients.inputs)
    featured = ClientData._as_checked(inputs, clients.targets, clients.sizes)
    trained = train_cohort(model.head, head, featured, cohort, batches, trainable=head, **how)
    return [t._replace(params={f"head.{n}": p for n, p in t.params.items()}) for t in trained]
