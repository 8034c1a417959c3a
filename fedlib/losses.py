"""The loss of a batch: cross-entropy for labels, half squared error for reals, or your own."""

__all__ = ["Loss", "batch_loss", "example_losses", "losses_by", "stacked_losses", "task_loss"]

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from fedlib._checks import check_type, shown
from fedlib.keys import takes_generator
from fedlib.models import Params

Loss = Callable[..., Tensor]
"""``(outputs, targets) -> losses``: what a model returns for n examples, and their targets, to one
number for each, shape (n,). An example's loss may not depend on the others. A loss that draws takes
a third argument, ``generator``: a ``torch.Generator`` on the CPU, its own for each client and
step."""

# Torch leaves out labels of -100, its default, without a word. This one nobody has.
_NO_LABEL = -(2**61)


def task_loss(outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return the mean loss of a batch: cross-entropy for labels, half squared error for reals.

    Args:
        outputs: logits of shape (n, c), or predicted responses of shape (n,).
        targets: class indices, or real responses; shape (n,).

    Returns:
        :math:`\frac1n\sum_j\ell(\hat y_j, y_j)`, a scalar.

    Raises:
        TypeError: if an argument is no tensor, or of a type that has no loss.
        ValueError: if the shapes are others (nothing is broadcast), or a label is no class.

    Example:
        >>> import torch
        >>> task_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """
    return _task_losses(outputs, targets, "mean")


def example_losses(
    outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the loss of each example of a batch; ``task_loss`` is their mean, and raises as this.

    Example:
        >>> import torch
        >>> example_losses(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 4.5000])
    """
    return _task_losses(outputs, targets, "none")


def losses_by(
    loss: Loss | None, outputs: Any, targets: Tensor, generator: Generator | None = None
) -> Float[Tensor, " n"]:
    """Return the loss of each example, by a loss of one's own, or None for the library's.

    Raises:
        ValueError: if the loss returns anything but one number per example.
    """
    if loss is None:
        return _task_losses(outputs, targets, "none")
    draws = {} if generator is None else {"generator": generator}
    losses = loss(outputs, targets, **draws)
    n = len(targets)
    fits = isinstance(losses, Tensor) and losses.shape == (n,) and losses.is_floating_point()
    if not fits or losses.layout != torch.strided:
        raise ValueError(
            f"Invalid loss: for {n} examples it returns {shown(losses)}. Return one real number "
            f'per example, shape ({n},): reduction="none", and the mean over all other axes.'
        )
    return losses


def batch_loss(
    call: Callable[[Params, Tensor], Any],
    loss: Loss | None,
    params: Params,
    x: Tensor,
    y: Tensor,
    shares: Tensor | None,
    generators: Sequence[Generator] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of one client's batch, or of merged clients', weighted by ``shares``."""
    outputs = call(params, x)
    if loss is None and shares is None:
        return _task_losses(outputs, y, "mean")
    losses = losses_by(loss, outputs, y, generators[0] if generators and _draws(loss) else None)
    return losses.mean() if shares is None else losses @ shares.to(losses.dtype)


def stacked_losses(
    call: Callable[[Params, Tensor], Any],
    loss: Loss | None,
    params: Params,
    x: Tensor,
    y: Tensor,
    shares: Tensor | None,
    generators: Sequence[Generator] | None = None,
) -> Float[Tensor, " k"]:
    """Return the losses of k clients' batches; all that is given has a leading axis of clients."""
    outputs = call(params, x)
    if generators and _draws(loss):
        own = [tree_map(lambda out, i=i: out[i], outputs) for i in range(len(y))]
        losses = torch.stack(
            [losses_by(loss, *each) for each in zip(own, y, generators, strict=True)]
        )
    else:  # the axis of clients goes into that of examples
        flat = tree_map(lambda out: out.flatten(0, 1), outputs)
        losses = losses_by(loss, flat, y.flatten(0, 1)).view(y.shape[:2])
    return losses.mean(1) if shares is None else (losses * shares.to(losses.dtype)).sum(1)


def _draws(loss: Loss | None) -> bool:
    return loss is not None and takes_generator(loss)


def _task_losses(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    # Called for every batch: one condition, and what is wrong is found out only if something is.
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        _refuse(outputs, targets)
    real = targets.is_floating_point()
    fits = outputs.shape == targets.shape if real else outputs.shape[:-1] == targets.shape
    if not (
        fits
        and targets.ndim == 1
        and len(targets)
        and outputs.ndim == 2 - real
        and outputs.is_floating_point()
        and not targets.is_complex()
    ):
        _refuse(outputs, targets)
    if real:
        squares = (outputs - targets).square()
        return 0.5 * (squares.mean() if reduction == "mean" else squares)
    try:
        return nn.functional.cross_entropy(
            outputs, targets.long(), reduction=reduction, ignore_index=_NO_LABEL
        )
    except IndexError as error:
        raise ValueError(
            f"Invalid targets: labels reach from {int(targets.min())} to {int(targets.max())}, "
            f"but there are {outputs.shape[1]} outputs. Use labels from 0 to "
            f"{outputs.shape[1] - 1}."
        ) from error


def _refuse(outputs: Any, targets: Any) -> NoReturn:
    check_type("outputs", outputs, Tensor, "Use what a model returns.")
    check_type("targets", targets, Tensor, "Use torch.as_tensor(targets).")
    real = targets.is_floating_point()
    if not outputs.is_floating_point() or targets.is_complex():
        wrong = "targets" if targets.is_complex() else "outputs"
        dtype = targets.dtype if targets.is_complex() else outputs.dtype
        raise TypeError(f"Invalid {wrong} of type {dtype}: no loss is defined. Use real numbers.")
    needed = (
        "real targets need one number per example, outputs of their shape (n,). Squeeze the last "
        "dimension, as LinearNet does."
        if real
        else "labels of shape (n,) need one row of scores per example, outputs of shape (n, c). "
        "Flatten what the model returns to that."
    )
    raise ValueError(
        f"Invalid outputs of shape {tuple(outputs.shape)} for targets of shape "
        f"{tuple(targets.shape)}: {needed}"
    )
