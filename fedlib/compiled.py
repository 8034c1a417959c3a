"""Local steps compiled into one function, by ``torch.compile``."""

__all__ = ["compiled_loop"]

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from itertools import islice
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from fedlib.local import sgd_loop
from fedlib.models import Params
from fedlib.rules import LocalStep

_UNROLLED = 10
"""Steps compiled into one function, if all have the same batch: more save calls, and take longer to
compile. Different batches are gathered one by one, to be in the cache when they are used."""

_TOLERANCE = 0.1
"""Relative error of an update that passes: far above rounding, far below a missing gradient."""


def compiled_loop(
    loss: Callable[..., Tensor],
    rule: LocalStep,
    lr: float,
    params: Params,
    leaves: Params,
    state: object,
    batches: Iterable[Sequence[Tensor | None]],
    *,
    cache_key: Hashable,
) -> tuple[Params, object, list[Tensor]]:
    """Take the steps of ``sgd_loop``, compiled.

    Whenever something new was compiled, its steps are also taken uncompiled, and the leaves
    compared. If they differ, or compiling fails, a warning tells why, and from then on steps of
    this kind are taken as they are.

    Args:
        loss: as for ``sgd_loop``, and so are the others; here for a stack of clients.
        rule: the rule.
        lr: step size α; another one is no other function.
        params: all parameters.
        leaves: the parameters that move.
        state: the rule's state.
        batches: arguments of ``loss``; a list if all steps have the same.
        cache_key: tells what the loss computes. PyTorch keeps about eight graphs for a function;
            the steps of one key, by one rule, of the same leaves, are a function of their own.

    Returns:
        New leaves, new state, and each step's losses before it.
    """
    first = next(iter(leaves.values()))
    take = _steps_of(cache_key, rule.name, tuple(leaves), first.dtype, first.device.type)
    length, losses = _UNROLLED if isinstance(batches, list) else 1, []
    batches = iter(batches)
    while block := list(islice(batches, length)):
        leaves, state, values = take(loss, rule, lr, params, leaves, state, block)
        losses += values
    return leaves, state, losses


def _take_functional(loss, rule, lr, params, leaves, state, batches):
    """Take the steps of ``sgd_loop`` in the form that ``torch.compile`` can read."""
    losses = []
    for batch in batches:

        def objective(leaves: Params, batch=batch) -> tuple[Tensor, Tensor]:
            values = loss(params | leaves, *batch)
            return values.sum(), values

        grads, values = grad(objective, has_aux=True)(leaves)
        moved, state = rule.update(list(leaves.values()), list(grads.values()), state, lr)
        leaves = dict(zip(leaves, moved, strict=True))
        losses.append(values)
    return leaves, state, losses


class _Steps:
    """A function that takes steps: compiled, until compiling fails or goes wrong."""

    def __init__(self, rule: str) -> None:
        # PyTorch counts graphs by code object: a copy is another function.
        code = _take_functional.__code__.replace(co_name=f"steps of {rule}")
        copy = FunctionType(code, globals(), closure=_take_functional.__closure__)
        self.compiled: Any = torch.compile(copy, dynamic=False, backend=self._compile_graph)
        self.checked = False

    def _compile_graph(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.checked = False
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    def __call__(self, loss, rule, lr, params, leaves, state, batches):
        def uncompiled() -> tuple[Params, object, list[Tensor]]:
            apart = {name: p.detach() for name, p in leaves.items()}  # will need gradients
            return sgd_loop(loss, rule, lr, params, apart, state, batches)

        if not self.compiled:
            return uncompiled()
        # A number would be compiled in, and every step size compiled anew.
        exact = torch.promote_types(next(iter(leaves.values())).dtype, torch.float32)
        rate = torch.tensor(lr, dtype=exact)
        try:
            taken = self.compiled(loss, rule, rate, params, leaves, state, batches)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # compiling goes through many layers, each with its own errors
            expected = uncompiled()  # if the error is the rule's own, it shows here
            why = " ".join((str(error) or repr(error)).splitlines()[:2])
            self._give_up(f"failed ({why})", "Install a C++ compiler, or use")
            return expected
        if not self.checked:
            expected = uncompiled()
            off = _error(taken[0], expected[0], leaves)
            finite = all(bool(p.isfinite().all()) for p in expected[0].values())
            if finite and not off <= _TOLERANCE:
                known = "It ignores the backward of a torch.autograd.Function, for one. Use"
                self._give_up(f"gave updates that are {off:.0%} off", known)
                return expected
            self.checked = finite
        return taken

    def _give_up(self, what: str, remedy: str) -> None:
        self.compiled = None
        warnings.warn(
            f'torch.compile {what}: the steps run uncompiled. {remedy} the strategy "stacked".',
            RuntimeWarning,
            stacklevel=2,
        )


@cache
def _steps_of(
    cache_key: Hashable, rule: str, leaves: tuple[str, ...], dtype: torch.dtype, device: str
) -> _Steps:
    return _Steps(rule)


def _error(taken: Params, expected: Params, start: Params) -> float:
    """Return the largest relative error of a leaf's update, of the median client.

    The median, since by rounding a client may cross a kink of ReLU, and then goes another way.
    """

    def lengths(a: Params, b: Params) -> Float[Tensor, "leaves k"]:
        moves = [(a[n].double() - b[n]).reshape(len(p), -1) for n, p in start.items()]
        return torch.stack([move.norm(dim=1) for move in moves])

    zero = dict.fromkeys(start, torch.zeros(()))
    size, way, gap = lengths(start, zero), lengths(expected, start), lengths(taken, expected)
    # An update may be nothing but rounding: of the parameters, or of the other leaves' gradients.
    eps = max(torch.finfo(p.dtype).eps for p in start.values())
    way = way + 100 * eps * size.amax(0) + 0.05 * way.amax(0)
    errors = torch.where(gap > 0, gap / way, gap)
    return float(errors.median(1).values.amax())
