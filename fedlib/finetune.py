"""Adaptation of the server's model to clients, one by one."""

__all__ = ["fine_tune"]

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedlib._checks import check_in, check_int, check_positive_int, check_step_size
from fedlib.batches import LARGEST_DRAW, all_of, draw_batches
from fedlib.clients import ClientData
from fedlib.cohort import plan
from fedlib.losses import Loss
from fedlib.models import BodyHead, Params
from fedlib.strategy import STRATEGIES, Strategy
from fedlib.validate import FunctionalCopy, Ready, check_model, own_modes, untouched

_CHUNK = 2000  # examples in one forward pass of the body


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
    loss: Loss | None = None,
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
        part: "all"; or "head" or "body", to move only parameters whose names begin so. Parameters
            without ``requires_grad`` stay as they are.
        seed: keys the batches, at least 0.
        strategy: how clients are run side by side; see ``run_fedavg``; they are never merged. If
            only the head of a ``BodyHead`` moves, what the body returns is computed once, and the
            heads are run as a net of their own.
        loss: ``(outputs, targets) -> one loss per example``; see ``run_fedavg``.

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
    steps = check_int("steps", steps, 1, LARGEST_DRAW)
    lr = check_step_size("lr", lr)
    part = check_in("part", part, ["all", "head", "body"])
    seed = check_int("seed", seed, minimum=0)
    if batch_size is not None:
        batch_size = check_positive_int("batch_size", batch_size)
    if not isinstance(strategy, Strategy):
        strategy = check_in("strategy", strategy, ["auto", *STRATEGIES])
    merges = strategy if isinstance(strategy, Strategy) else STRATEGIES.get(strategy)
    if isinstance(merges, Strategy) and merges.merge:
        raise ValueError(
            "Invalid strategy: it merges clients, but fine-tuned clients stay apart. "
            'Use strategy="auto".'
        )
    ready = check_model(model, params, clients, loss)
    named = [name for name in params if part == "all" or name.startswith(f"{part}.")]
    if not named:
        raise ValueError(
            f'Invalid part="{part}": the model has no parameter named "{part}.…". Use part="all", '
            "or give the model a body and a head, as BodyHead does."
        )
    movable = {name for name, p in model.named_parameters() if p.requires_grad}
    trainable = [name for name in named if name in movable]
    if not trainable:
        raise ValueError(
            f'Invalid part="{part}": none of its parameters is trainable. Use '
            "requires_grad_(True) on those that shall move."
        )
    shared = [n for n in ready.replica().others if part in ("head", "body") and _ties(ready, n)]
    if shared:
        raise ValueError(
            f'Invalid part="{part}": {shared[0]} is a parameter of the body and of the head. Use '
            'part="all".'
        )
    draw = partial(draw_batches, local_steps=steps, batch_size=batch_size)
    batches = [
        all_of(size, steps)
        if batch_size is None or size <= batch_size
        else draw(size, rng=np.random.default_rng([seed, i]))
        for i, size in enumerate(clients.sizes.tolist())
    ]
    heads = _heads_alone(ready, strategy) if part == "head" else None
    if heads is not None:  # a body that stays gives the same every time
        ready, names = heads, [name.removeprefix("head.") for name in trainable]
    else:
        names = trainable
    planned = plan(ready, trainable=names, strategy=strategy, local_steps=[steps])
    key = seed if planned.draws else None
    everyone = np.arange(clients.num_clients)
    personal: list[Params] = [params] * clients.num_clients
    with own_modes(clients.device):
        jobs = planned.train_here(ready.clients, ready.params, everyone, batches, lr=lr, key=key)
    for places, job in jobs:
        for row, client in enumerate(places):
            # Copied: whoever keeps or saves one client's shall not keep all of its job's.
            moved = {
                n: job.params[own][row].clone() for n, own in zip(trainable, names, strict=True)
            }
            if not all(bool(p.isfinite().all()) for p in moved.values()):
                raise FloatingPointError(
                    f"Fine-tuning diverged on client {client}. Use an lr smaller than {lr}."
                )
            personal[client] = params | moved
    return personal


def _ties(ready: Ready, name: str) -> bool:
    """Tell whether the body and the head share this parameter."""
    parts = {n.partition(".")[0] for n in (name, ready.replica().others[name])}
    return parts == {"body", "head"}


def _heads_alone(ready: Ready, strategy: str | Strategy) -> Ready | None:
    """Return the head, ready for what the body returns, if that is all that the model does."""
    model, clients = ready.model, ready.clients
    hooks = model._forward_pre_hooks or model._forward_hooks
    whole = type(model).forward is not BodyHead.forward or "forward" in vars(model) or hooks
    if whole or not (isinstance(strategy, str) or strategy.autocast is None):
        return None
    with own_modes(clients.device, grad=False):
        replica = ready.replica()
        body, spare = replica.loaded(ready.params).get_submodule("body"), replica.spare
        own_head = model.get_submodule("head")
        rows = []
        for x in clients.inputs.split(_CHUNK):
            with untouched(x):
                rows.append(body(x.clone() if spare else x))
        if not all(isinstance(row, Tensor) and row.ndim for row in rows):
            return None
        inputs = torch.cat(rows)
        if len(inputs) != len(clients.inputs):
            return None
        head = {n.removeprefix("head."): p for n, p in ready.params.items() if n[:5] == "head."}
        if head.keys() != dict(own_head.named_parameters()).keys():
            return None
        # A head may use more than what the body returns.
        x = clients.inputs[:2].clone()
        try:
            apart = FunctionalCopy(own_head, spare=True)(head, inputs[:2])
        except Exception:
            return None
        if not torch.allclose(apart, replica(ready.params, x), rtol=1e-3, atol=1e-5):
            return None
    featured = ClientData._as_checked(inputs, clients.targets, clients.sizes)
    return check_model(own_head, head, featured, ready.loss)
