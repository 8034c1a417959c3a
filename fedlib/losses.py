"""The loss of a batch: cross-entropy for labels, half squared error for reals."""

__all__ = ["example_losses", "task_loss"]

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fedlib._checks import check_type

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
    _check_fit(outputs, targets)
    if targets.is_floating_point():
        return 0.5 * (outputs - targets).square().mean()
    return _cross_entropy(outputs, targets, "mean")


def example_losses(
    outputs: Float[Tensor, "n *c"], targets: Shaped[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the loss of each example of a batch; ``task_loss`` is their mean, and raises as this.

    Example:
        >>> import torch
        >>> example_losses(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 4.5000])
    """
    _check_fit(outputs, targets)
    if targets.is_floating_point():
        return 0.5 * (outputs - targets).square()
    return _cross_entropy(outputs, targets, "none")


def _cross_entropy(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
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


def _check_fit(outputs: Tensor, targets: Tensor) -> None:
    check_type("outputs", outputs, Tensor, "Use what a model returns.")
    check_type("targets", targets, Tensor, "Use torch.as_tensor(targets).")
    real = targets.is_floating_point()
    if not outputs.is_floating_point() or targets.is_complex():
        wrong = "targets" if targets.is_complex() else "outputs"
        dtype = targets.dtype if targets.is_complex() else outputs.dtype
        raise TypeError(f"Invalid {wrong} of type {dtype}: no loss is defined. Use real numbers.")
    fits = outputs.shape == targets.shape if real else outputs.shape[:-1] == targets.shape
    if targets.ndim == 1 and len(targets) and outputs.ndim == 2 - real and fits:
        return
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
