"""Local training: the loss, the batches, and the steps of one client."""

__all__ = [
    "LocalResult",
    "check_batches",
    "local_sgd",
    "local_update",
    "sgd_loop",
]

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from fedlib._checks import check_array, check_names, check_step_size, check_tensor, check_type
from fedlib.batches import Batch
from fedlib.clients import ClientData
from fedlib.losses import batch_loss
from fedlib.models import Params
from fedlib.rules import LocalStep, sgd
from fedlib.validate import (
    check_model,
    check_period,
    check_rule,
    own_modes,
    trainable_of,
)


class LocalResult(NamedTuple):
    """What a client sends back.

    Attributes:
        params: parameters after the local steps.
        loss: mean of the batch losses met on the way, each before its step; scalar tensor. (One
            per client for a stack of clients, whose parameters have a leading client axis.)
    """

    params: Params
    loss: Float[Tensor, "*k"]


def local_sgd(
    model: nn.Module,
    params: Params,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, " n"],
    batches: Int[np.ndarray, "local_steps batch"],
    *,
    lr: float,
    step: LocalStep = sgd,
    trainable: Collection[str] | None = None,
) -> LocalResult:
    r"""Run one client's SGD steps, :math:`\theta\leftarrow\theta-\alpha\nabla\ell(\theta)`.

    Args:
        model: gives the architecture; its own parameters are neither read nor changed.
        params: where the client starts.
        inputs: the client's inputs, shape (n, ...).
        targets: the client's targets, shape (n,).
        batches: positions of each step's examples, one row per step.
        lr: step size α.
        step: the local rule, SGD unless given.
        trainable: names of the parameters that move; None moves those with ``requires_grad``.

    Returns:
        Parameters after the last step, and the mean batch loss.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument is out of range, the data, the parameters or the rule do not fit
            the model, or the model is not a pure function.

    Reference:
        The inner loop of FedAvg, Chapter 1.
    """
    lr = check_step_size("lr", lr)
    for name, tensor in {"inputs": inputs, "targets": targets}.items():
        check_tensor(name, check_type(name, tensor, Tensor, f"Use torch.as_tensor({name})."))
    if not (inputs.ndim and targets.ndim == 1 and len(inputs) == len(targets) > 0):
        raise ValueError(
            f"Invalid targets of shape {tuple(targets.shape)}: the inputs are of shape "
            f"{tuple(inputs.shape)}. Give one target per input."
        )
    batches = check_batches(batches, len(inputs))
    # Not checked example by example, as the data of a federation are: a round calls this often.
    client = ClientData._as_checked(inputs, targets, np.array([len(inputs)]))
    ready = check_model(model, params, client)
    trainable = trainable_of(model) if trainable is None else trainable
    ready.check_trainable(sorted(check_names("trainable", trainable)))
    check_rule(step, {name: params[name] for name in params if name in trainable})
    check_period(step, len(batches))
    names = [name for name in params if name in trainable]

    with own_modes(inputs.device):
        full = batches.strides[0] == 0  # one row's memory for all steps: one batch for all
        rows = torch.tensor(batches[:1] if full else batches, device=inputs.device)
        pairs: Iterable[Batch] = (
            (inputs.index_select(0, row), targets.index_select(0, row), None) for row in rows
        )
        pairs = list(pairs) * len(batches) if full else pairs
        loss = partial(batch_loss, ready.replica(), None)
        moved, mean = local_update(loss, params, pairs, lr=lr, rule=step, trainable=names)
    return LocalResult(params | moved, mean)


def check_batches(batches: np.ndarray, size: int) -> np.ndarray:
    """Return positions of examples, one row per step, of a client with ``size`` examples.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are not rows, or reach outside the client's examples.
    """
    batches = check_array("batches", batches, (None, None), kinds="iu")
    if batches.min() < 0 or batches.max() >= size:
        raise ValueError(
            f"Invalid batches: they reach from {batches.min()} to {batches.max()}, but the client "
            f"has {size} examples. Use positions from 0 to {size - 1}."
        )
    return batches.astype(np.int64, copy=False)


def sgd_loop(
    loss: Callable[..., Tensor],
    rule: LocalStep,
    lr: float,
    params: Params,
    leaves: Params,
    state: object,
    batches: Iterable[Sequence],
) -> tuple[Params, object, list[Tensor]]:
    """Take one step per batch: gradients of the leaves, then the rule.

    Args:
        loss: ``(params, *batch) -> losses``, a scalar or one loss per client of a stack.
        rule: what a step does with gradients.
        lr: step size α.
        params: all parameters; where ``leaves`` has the same name, the leaf counts.
        leaves: the parameters that move; their tensors are set to need gradients.
        state: the rule's state.
        batches: arguments of ``loss``, step by step.

    Returns:
        New leaves, new state, and each step's losses before it.
    """
    losses = []
    for batch in batches:
        for p in leaves.values():
            p.requires_grad_()
        values = loss(params | leaves, *batch)
        # A client's loss depends on its own parameters only: the gradient of the sum serves all.
        total = values.sum() if values.ndim else values
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        with torch.no_grad():
            moved, state = rule.update(list(leaves.values()), list(grads), state, lr)
        leaves = dict(zip(leaves, moved, strict=True))
        losses.append(values.detach())
    return leaves, state, losses


def local_update(
    loss: Callable[..., Tensor],
    params: Params,
    batches: Iterable[Sequence],
    *,
    lr: float,
    rule: LocalStep,
    trainable: Sequence[str],
    extra: list[Tensor] | None = None,
    loop: Callable[..., tuple[Params, object, list[Tensor]]] = sgd_loop,
) -> LocalResult:
    """Run the local steps of one client, or of a stack of clients: what every strategy does.

    Args:
        loss: ``(params, *batch) -> losses``, a scalar or one loss per client of a stack.
        params: where the steps start.
        batches: arguments of ``loss``, step by step.
        lr: step size α.
        rule: what a step does with gradients.
        trainable: names of the parameters that move, in the order of ``params``.
        extra: passed to the rule's ``init``.
        loop: how the steps are computed; see ``sgd_loop``.

    Returns:
        The parameters that moved, and the mean of the losses over the steps.
    """
    leaves = {name: params[name].detach() for name in trainable}
    start = list(leaves.values())
    versions = [p._version for p in start]
    state = rule.init(start, extra)
    # A list holds one batch for all steps, which a step must not change for those after it.
    first = batches[0][0] if isinstance(batches, list) else None
    version = None if first is None else first._version
    leaves, _, losses = loop(loss, rule, lr, params, leaves, state, batches)
    if first is not None and first._version != version:
        raise ValueError(
            "Invalid model: it writes into some of its inputs, though not into the first two "
            "examples. Return new tensors: x.clamp(max=1), not x.clamp_(max=1)."
        )
    if [p._version for p in start] != versions:
        raise ValueError(
            f"Invalid step {rule.name}: it writes into the parameters that it is given, which are "
            "the server's. Return new tensors: p - lr * g, not p.sub_(lr * g)."
        )
    return LocalResult({n: p.detach() for n, p in leaves.items()}, torch.stack(losses).mean(0))
