"""The engine: what the clients of one cohort compute in one round."""

__all__ = ["STRATEGIES", "LocalResult", "draw_batches", "local_sgd", "task_loss", "train_cohort"]

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from fedlib.clients import ClientData
from fedlib.models import Params


class LocalResult(NamedTuple):
    """What a client sends back.

    Attributes:
        params: parameters after the local steps.
        loss: mean of the batch losses met on the way, each before its step; scalar tensor.
    """

    params: Params
    loss: Float[Tensor, ""]


def task_loss(outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return the mean loss of a batch: cross-entropy for labels, half squared error for reals.

    Args:
        outputs: logits of shape (n, c), or predicted responses of shape (n,).
        targets: class indices, or real responses; shape (n,).

    Returns:
        :math:`\frac1n\sum_j\ell(\hat y_j, y_j)`, a scalar.

    Example:
        >>> task_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """
    if targets.is_floating_point():
        return 0.5 * (outputs - targets).square().mean()
    return nn.functional.cross_entropy(outputs, targets)


def draw_batches(
    size: int, *, local_steps: int, batch_size: int | None, rng: np.random.Generator
) -> Int[np.ndarray, "local_steps batch"]:
    """Draw the examples that one client uses in one round.

    The client shuffles its examples, walks through them a batch at a time, and shuffles anew when
    fewer than a batch are left; so no batch holds an example twice.

    Args:
        size: the client's number of examples.
        local_steps: number of batches.
        batch_size: examples per batch; None, or at least ``size``, takes all of them in order,
            which makes the local steps plain gradient descent.
        rng: shuffles.

    Returns:
        Positions among the client's examples, one row per step.

    Example:
        >>> draw_batches(4, local_steps=2, batch_size=2, rng=np.random.default_rng(0)).shape
        (2, 2)
        >>> draw_batches(3, local_steps=2, batch_size=None, rng=np.random.default_rng(0))
        array([[0, 1, 2],
               [0, 1, 2]])
    """
    if batch_size is None or batch_size >= size:
        return np.tile(np.arange(size), (local_steps, 1))
    per_epoch = size // batch_size
    epochs = -(-local_steps // per_epoch)
    order = np.stack([rng.permutation(size)[: per_epoch * batch_size] for _ in range(epochs)])
    return order.reshape(-1, batch_size)[:local_steps]


def local_sgd(
    model: nn.Module,
    params: Params,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, " n"],
    batches: Int[np.ndarray, "local_steps batch"],
    *,
    lr: float,
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
        trainable: names of the parameters that move; None moves all.

    Returns:
        Parameters after the last step, and the mean batch loss.

    Reference:
        The inner loop of FedAvg, Chapter 1.
    """
    moving = {
        name: p.detach().clone().requires_grad_()
        for name, p in params.items()
        if trainable is None or name in trainable
    }
    leaves = list(moving.values())
    rows = torch.as_tensor(batches, device=inputs.device)
    total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
    # One gather for the whole round costs less than one per step.
    steps = zip(
        inputs.index_select(0, rows.flatten()).view(*rows.shape, *inputs.shape[1:]),
        targets.index_select(0, rows.flatten()).view(rows.shape),
        strict=True,
    )
    for x, y in steps:
        loss = task_loss(functional_call(model, params | moving, (x,)), y)
        grads = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            torch._foreach_add_(leaves, grads, alpha=-lr)
            total += loss
    done = {name: p.detach() for name, p in moving.items()}
    return LocalResult(params | done, total / len(rows))


def _loop(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " cohort"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    *,
    lr: float,
) -> list[LocalResult]:
    """One client after the other: the plainest strategy, and the one others are tested against."""
    return [
        local_sgd(model, params, *clients[int(i)], rows, lr=lr)
        for i, rows in zip(cohort, batches, strict=True)
    ]


STRATEGIES: dict[str, Callable[..., list[LocalResult]]] = {"loop": _loop}
"""Ways to run a cohort. They give the same results, up to rounding, at different speeds."""


def train_cohort(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " cohort"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    *,
    lr: float,
    strategy: str = "auto",
) -> list[LocalResult]:
    """Run the local steps of every client in a cohort, all from the same parameters.

    Args:
        model: gives the architecture.
        params: the server's parameters.
        clients: the federation's data.
        cohort: ids of the clients that take part.
        batches: one array of positions per client of the cohort.
        lr: step size α.
        strategy: a name in ``STRATEGIES``, or "auto" to choose by model and device.

    Returns:
        One result per client, in the cohort's order.
    """
    run = STRATEGIES["loop" if strategy == "auto" else strategy]
    return run(model, params, clients, cohort, batches, lr=lr)
