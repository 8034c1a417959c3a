"""Batches: which examples a client uses in a round, and how they are laid side by side."""

__all__ = [
    "LARGEST_DRAW",
    "Batch",
    "all_of",
    "draw_batches",
    "gather",
    "merge_batches",
    "stack_batches",
]

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedlib._checks import check_int, check_positive_int, check_rng, refuse
from fedlib.clients import ClientData

LARGEST_DRAW = 2**28
"""Positions that are drawn at once, at most: two gigabytes of them."""

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Inputs, targets, and weights of the examples or None."""


def draw_batches(
    size: int, *, local_steps: int, batch_size: int | None, rng: np.random.Generator
) -> Int[np.ndarray, "local_steps batch"]:
    """Draw the examples that one client uses in one round.

    The client shuffles its examples, walks through them a batch at a time, and shuffles anew when
    fewer than a batch are left; so no batch holds an example twice.

    Args:
        size: the client's number of examples.
        local_steps: number of batches, at most 2**28, and so are the positions drawn.
        batch_size: examples per batch; None, or at least ``size``, takes all of them in order,
            which makes the local steps plain gradient descent.
        rng: shuffles.

    Returns:
        Positions among the client's examples, one row per step. Full batches share one row's
        memory.

    Raises:
        TypeError: if a number is not an integer, or ``rng`` is not a NumPy generator.
        ValueError: if a number is less than 1 or too large.

    Example:
        >>> draw_batches(4, local_steps=2, batch_size=2, rng=np.random.default_rng(0)).shape
        (2, 2)
        >>> draw_batches(3, local_steps=2, batch_size=None, rng=np.random.default_rng(0))
        array([[0, 1, 2],
               [0, 1, 2]])
    """
    check_rng(rng)
    size = check_int("size", size, 1, LARGEST_DRAW)
    local_steps = check_positive_int("local_steps", local_steps)
    batch_size = size if batch_size is None else check_positive_int("batch_size", batch_size)
    full = batch_size >= size
    most = LARGEST_DRAW if full else LARGEST_DRAW // batch_size
    if local_steps > most:
        refuse("local_steps", local_steps, "too many for one round", f"local_steps <= {most}")
    if full:
        return all_of(size, local_steps)
    per_epoch = size // batch_size
    epochs = -(-local_steps // per_epoch)
    order = np.stack([rng.permutation(size)[: per_epoch * batch_size] for _ in range(epochs)])
    return order.reshape(-1, batch_size)[:local_steps]


def all_of(size: int, local_steps: int) -> Int[np.ndarray, "local_steps batch"]:
    """Return the full batch of every step, as ``draw_batches``, but held once for all steps."""
    if local_steps > LARGEST_DRAW:
        use = f"local_steps <= {LARGEST_DRAW}"
        refuse("local_steps", local_steps, "too many for one round", use)
    order = np.arange(size)  # not broadcast_to: torch warns of arrays that are read-only
    return np.lib.stride_tricks.as_strided(order, (local_steps, size), (0, order.itemsize))


def stack_batches(
    starts: np.ndarray, batches: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return rows of the data, (local_steps, k, b), and weights within batches, (k, b) or None.

    Shorter batches are filled up with examples of weight zero.
    """
    if len(batches[0]) > 1 and all(_is_one_row(rows) for rows in batches):
        rows, weights = stack_batches(starts, [rows[:1] for rows in batches])
        return np.broadcast_to(rows, (len(batches[0]), *rows.shape[1:])), weights
    widths = np.array([rows.shape[1] for rows in batches])
    if (widths == widths[0]).all():
        rows = np.stack(batches, axis=1)
        return rows + starts[:, None], None
    full = np.arange(widths.max()) < widths[:, None]
    rows = np.empty((len(batches[0]), *full.shape), dtype=np.int64)
    for i, own in enumerate(batches):  # the filling: an example that the step sees anyway
        rows[:, i] = own[:, :1]
        rows[:, i, : widths[i]] = own
    return rows + starts[:, None], full / widths[:, None]


def _is_one_row(rows: np.ndarray) -> bool:
    """Whether all rows lie in the memory of one, as ``draw_batches`` lays full batches."""
    return rows.strides[0] == 0


def merge_batches(
    starts: np.ndarray, batches: Sequence[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the data, (1, 1, b), and weights that make one batch of many, (b,)."""
    rows = np.concatenate([start + own[0] for start, own in zip(starts, batches, strict=True)])
    widths = np.array([own.shape[1] for own in batches])
    shares = np.repeat(weights / (weights.sum() or 1) / widths, widths)
    return rows[None, None], shares


def gather(clients: ClientData, rows: np.ndarray, weights: np.ndarray | None) -> Iterable[Batch]:
    """Return the batch of each step: a list if all steps have the same.

    Args:
        clients: the data.
        rows: rows of the data, shape (local_steps, b), or (local_steps, k, b) for a stack.
        weights: of the examples of every batch; None if they count alike.
    """
    shares = None if weights is None else torch.as_tensor(weights, device=clients.device)
    shape, flat = rows.shape[1:], rows.reshape(len(rows), -1)
    if _is_one_row(flat) or (flat == flat[0]).all():  # full batches: gathered once
        x, y = _select(clients, flat[0].copy())  # broadcast rows are read-only
        return [(x.unflatten(0, shape), y.unflatten(0, shape), shares)] * len(flat)
    index = torch.as_tensor(flat, device=clients.device)
    # Targets are small: one call for all steps. Inputs are gathered when the step needs them, and
    # are in the cache then.
    targets = clients.targets.index_select(0, index.flatten())
    targets = targets.view(*rows.shape, *targets.shape[1:])
    inputs = (clients.inputs.index_select(0, row) for row in index)
    if len(shape) > 1:
        inputs = (x.unflatten(0, shape) for x in inputs)
    return ((x, y, shares) for x, y in zip(inputs, targets, strict=True))


def _select(clients: ClientData, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    if (np.diff(rows) == 1).all():
        whole = slice(int(rows[0]), int(rows[-1]) + 1)
        x, y = clients.inputs[whole], clients.targets[whole]
        # Kernels round by alignment: data that lie otherwise than in a copy are copied.
        if x.data_ptr() % 64 == y.data_ptr() % 64 == 0:
            return x.clone(), y  # a model may write into it
    index = torch.as_tensor(rows, device=clients.device)
    return clients.inputs.index_select(0, index), clients.targets.index_select(0, index)
