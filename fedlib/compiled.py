"""Local steps compiled into one function, by ``torch.compile``."""

__all__ = ["take_compiled"]

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import islice
from types import FunctionType

import torch
from torch import Tensor
from torch.func import grad

from fedlib.local import take_steps
from fedlib.models import Params
from fedlib.steps import LocalStep

_UNROLLED = 10
"""Steps compiled into one function, if all have the same batch: more save calls, and take longer to
compile. Different batches are gathered one by one, to be in the cache when they are used."""

_TOLERANCE = 0.1
"""Distance between compiled and uncompiled parameters that passes, as a share of their way. By
rounding a client crosses a kink of ReLU now and then, and that has made 0.015."""


def take_compiled(
    loss: Callable[..., Tensor],
    step: LocalStep,
    lr: float,
    params: Params,
    leaves: Params,
    state: object,
    batches: Iterable[Sequence[Tensor | None]],
    *,
    kind: str,
) -> tuple[Params, object, list[Tensor]]:
    """Take the steps of ``take_steps``, compiled.

    The first of each kind are also taken uncompiled, and compared. If they differ, or compiling
    fails, a warning tells why, and from then on steps of this kind are taken as they are.

    Args:
        loss: as for ``take_steps``, and so are the others.
        step: the rule.
        lr: step size α; another one is no other function.
        params: all parameters.
        leaves: the parameters that move.
        state: the rule's state.
        batches: arguments of ``loss``; a list if all steps have the same.
        kind: what the loss computes, by a name. PyTorch keeps about eight graphs for a function;
            steps of a kind, by a rule and with certain leaves, are a function of their own.

    Returns:
        New leaves, new state, and each step's losses before it.
    """
    take = _compiled(kind, step.name, tuple(leaves))
    length, met = _UNROLLED if isinstance(batches, list) else 1, []
    batches = iter(batches)
    while block := list(islice(batches, length)):
        leaves, state, losses = take(loss, step, lr, params, leaves, state, block)
        met += losses
    return leaves, state, met


def _take_functional(loss, step, lr, params, leaves, state, batches):
    """Take the steps of ``take_steps`` in the form that ``torch.compile`` can read."""
    met = []
    for batch in batches:

        def objective(leaves: Params, batch=batch) -> tuple[Tensor, Tensor]:
            losses = loss(params | leaves, *batch)
            return losses.sum(), losses

        grads, losses = grad(objective, has_aux=True)(leaves)
        moved, state = step.update(list(leaves.values()), list(grads.values()), state, lr)
        leaves = dict(zip(leaves, moved, strict=True))
        met.append(losses)
    return leaves, state, met


class _Steps:
    """A function that takes steps, compiled; or not, once compiling failed or went wrong."""

    def __init__(self, rule: str) -> None:
        # PyTorch counts graphs by code object: a copy is another function.
        code = _take_functional.__code__.replace(co_name=f"steps of {rule}")
        copy = FunctionType(code, globals(), closure=_take_functional.__closure__)
        self.compiled = torch.compile(copy, dynamic=False)
        self.checked = False

    def __call__(self, loss, step, lr, params, leaves, state, batches):
        apart = {name: p.detach() for name, p in leaves.items()}  # will be set to need gradients
        uncompiled = partial(take_steps, loss, step, lr, params, apart, state, batches)
        if not self.compiled:
            return uncompiled()
        # A number would be compiled in, and every step size compiled anew.
        exact = torch.promote_types(next(iter(leaves.values())).dtype, torch.float32)
        rate = torch.tensor(lr, dtype=exact)
        try:
            taken = self.compiled(loss, step, rate, params, leaves, state, batches)
        except Exception as error:  # compiling goes through many layers, each with its own errors
            expected = uncompiled()  # if the error is the rule's own, it shows here
            why = (str(error) or repr(error)).splitlines()[0]
            self._give_up(f"failed ({why})", "Install a C++ compiler, or use")
            return expected
        if not self.checked:
            expected = uncompiled()
            off = _distance(taken[0], expected[0], leaves)
            if off > _TOLERANCE:
                known = "It ignores the backward of a torch.autograd.Function, for one. Use"
                self._give_up(f"gave steps that are {off:.0%} off", known)
                return expected
            self.checked = True
        return taken

    def _give_up(self, what: str, remedy: str) -> None:
        self.compiled = None
        message = (
            f'torch.compile {what}: the steps run uncompiled. {remedy} the strategy "stacked".'
        )
        warnings.warn(message, RuntimeWarning, stacklevel=5)


_compiled = cache(lambda kind, rule, leaves: _Steps(rule))


def _distance(taken: Params, expected: Params, start: Params) -> float:
    """Return how far two ends are apart, as a share of the way from the start, but for rounding."""

    def norm(a: Params, b: Params) -> float:
        return float(sum((a[n].double() - b[n]).square().sum() for n in start)) ** 0.5

    # Each step rounds; and a way may be as short as that.
    rounding = max(8 * torch.finfo(p.dtype).eps * float(p.norm()) for p in start.values())
    return norm(taken, expected) / max(norm(expected, start), rounding)
