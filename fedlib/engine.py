"""The engine: runs the local steps of a cohort, one of several ways."""

__all__ = ["STRATEGIES", "Strategy", "Trained", "choose_strategy", "train_cohort"]

import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from fedlib._checks import (
    check_array,
    check_bool,
    check_in,
    check_number,
    check_positive_int,
    check_type,
)
from fedlib.batches import gather, merge_batches, stack_batches
from fedlib.clients import ClientData
from fedlib.compiled import take_compiled
from fedlib.local import check_batches, example_losses, run_steps, take_steps, task_loss
from fedlib.models import Params
from fedlib.steps import LocalStep, sgd
from fedlib.validate import (
    Ready,
    Replica,
    check_model,
    check_period,
    check_rule,
    own_modes,
    trainable_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """How a cohort is run; what is computed stays the same, up to rounding.

    The cohort is cut into jobs of ``chunk`` clients, and the clients of a job run together, as
    ``stack`` or ``merge`` say. With two or more ``threads`` jobs run side by side, on a CPU, and
    each has one thread inside its kernels; otherwise one job follows the other, with all threads
    inside its kernels. How the cohort is cut does not depend on the number of threads; nor do the
    bits of the result, if jobs run side by side.

    Args:
        stack: give the clients of a job one forward pass, each with its own parameters; without
            it, a job is one client.
        merge: give the clients of a job one gradient, of their batches put together. Right for
            SGD with one local step, where all still share the server's parameters.
        chunk: clients per job; None takes as many as fit the processor's cache (4 MB of parameters
            and batches, or 256 merged examples), or 2 GB on a GPU.
        threads: jobs at the same time, on a CPU; None takes ``torch.get_num_threads()`` for jobs of
            one client, and 1 for stacked and merged jobs, whose kernels are large enough to use all
            threads themselves.
        compile: compile the steps of stacks with ``torch.compile``, once for each model, rule and
            shape of batches. PyTorch keeps about eight graphs of each model and rule, enough for
            two or more shapes; further shapes run uncompiled, so that with many of them a resumed
            run equals an undisturbed one up to rounding only. Needs a C++ compiler on a CPU. If
            compiling fails, or compiled steps differ from the same steps uncompiled, a warning
            tells why, and the steps run as they are.
        autocast: run the forward pass in this lower precision, ``torch.bfloat16`` say; parameters
            keep theirs. None changes nothing. This does change the result.
    """

    stack: bool = False
    merge: bool = False
    chunk: int | None = None
    threads: int | None = None
    compile: bool = False
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("stack", "merge", "compile"):
            object.__setattr__(self, name, check_bool(name, getattr(self, name)))
        for name in ("chunk", "threads"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))
        if self.stack and self.merge:
            raise ValueError("Invalid stack=True with merge=True. Use one of them.")
        if self.compile and not self.stack:
            raise ValueError("Invalid compile=True: only stacks are compiled. Use stack=True.")
        if self.compile and self.threads not in (None, 1):
            raise ValueError(
                f"Invalid threads={self.threads} with compile=True: one compiled job follows the "
                "other. Leave threads out."
            )
        if self.autocast is not None and not getattr(self.autocast, "is_floating_point", False):
            raise TypeError(
                f"Invalid autocast={self.autocast!r}: no floating point dtype of torch. "
                "Use torch.bfloat16."
            )
        if self.chunk not in (None, 1) and not (self.stack or self.merge):
            raise ValueError(
                f"Invalid chunk={self.chunk}: a job is one client. Use stack=True or merge=True."
            )


STRATEGIES = {
    "loop": Strategy(threads=1),
    "threads": Strategy(),
    "stacked": Strategy(stack=True),
    "compiled": Strategy(stack=True, compile=True),
    "merged": Strategy(merge=True),
}
"""Strategies by name: one client after the other; one per thread; many in one forward pass; the
same, compiled; one gradient for all (one local step only)."""


class Trained(NamedTuple):
    """What a job returns: some of the cohort's clients after their local steps.

    Attributes:
        places: their places in the cohort, shape (k,).
        params: their parameters, each with a leading axis of k clients; of one, the clients'
            average, if the job merged them.
        losses: mean batch losses, shape (k,), or (1,) if merged.
        weights: their weights, float64 of shape (k,), or (1,) if merged.
    """

    places: Int[np.ndarray, " k"]
    params: Params
    losses: Float[Tensor, " rows"]
    weights: Float[np.ndarray, " rows"]

    def total(self, names: Collection[str] | None = None) -> tuple[Params, Tensor]:
        """Return the weighted sums of parameters (those named; None takes all) and of losses.

        Sums are taken in float32 at least.
        """
        share = torch.as_tensor(self.weights, device=self.losses.device)

        def weighted(values: Tensor) -> Tensor:
            dtype = torch.promote_types(values.dtype, torch.float32)
            return torch.tensordot(share.to(dtype), values.to(dtype), 1)

        names = self.params if names is None else names
        return {name: weighted(self.params[name]) for name in names}, weighted(self.losses)


def choose_strategy(model: nn.Module, device: torch.device) -> str:
    """Choose the strategy that is fastest as a rule, among those that keep clients apart.

    A GPU wants one large kernel rather than many small ones: stacked. So do small fully connected
    nets on a CPU, where calling a kernel costs more than its work; but the convolutions of a stack
    run slower there than one client's, and of wide nets the parameters of not even two clients fit
    into the cache: these run one client per thread. Recurrent layers cannot be stacked at all.
    """

    def has(layer: type[nn.Module]) -> bool:
        return any(isinstance(module, layer) for module in model.modules())

    wide = 2 * sum(p.nbytes for p in model.parameters()) > _ROOM["cpu"]
    slow = device.type == "cpu" and (wide or has(nn.modules.conv._ConvNd))
    return "threads" if slow or has(nn.RNNBase) else "stacked"


def train_cohort(
    model: nn.Module | Ready,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " m"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    *,
    lr: float,
    step: LocalStep = sgd,
    extra: Params | None = None,
    own: Params | None = None,
    trainable: Collection[str] | None = None,
    weights: Real[np.ndarray, " m"] | None = None,
    strategy: str | Strategy = "auto",
    then: Callable[[Trained], object] | None = None,
) -> list:
    """Run the local steps of every client in a cohort.

    Args:
        model: gives the architecture; or a model that ``check_model`` found fit for these clients.
        params: the server's parameters, where all clients start.
        clients: the federation's data.
        cohort: ids of the clients that take part.
        batches: one array of positions, (local_steps, batch), per client of the cohort.
        lr: step size α.
        step: the local rule.
        extra: for the rule's ``init``: one tensor per trainable parameter, each with a leading
            axis of m clients.
        own: parameters that each client has for itself, which take the place of the server's; each
            with a leading axis of m clients. A personal head, say.
        trainable: names of the parameters that move; None moves those with ``requires_grad``.
        weights: weight of each client in the average; None takes numbers of examples.
        strategy: how to run the cohort: a name in ``STRATEGIES``, a ``Strategy``, or "auto", which
            merges no clients, and runs them apart, with a warning, if they cannot be stacked.
        then: applied to each job's result where it was computed (in its thread, so that what is
            summed need not be kept); None keeps the result itself.

    Returns:
        What ``then`` returned, or a ``Trained``, for each job. Places are in order if all batches
        are of one size; smaller batches come first.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the model, its parameters and the data do not fit (see ``check_model``),
            there is no client, not one row of batches, weights, ``extra`` or ``own`` each, their
            numbers of local steps differ or are no multiple of the rule's, a position is not the
            client's, a name is unknown, the rule breaks its contract, or clients cannot be stacked
            or merged as the strategy says.
    """
    if not isinstance(model, Ready):
        lr = check_number("lr", lr, above=0)
        check_in_cohort(clients, cohort, batches)
        model = check_model(model, params, clients)
    ready = model
    trainable = trainable_of(ready.model) if trainable is None else trainable
    weights = clients.sizes[cohort] if weights is None else weights
    own = own or {}
    _check_cohort(params, cohort, batches, weights, extra, own, trainable)
    strategy = resolve_strategy(
        strategy, ready, step, local_steps=len(batches[0]), trainable=trainable,
        own=own, extra=extra is not None,
    )  # fmt: skip

    take = take_steps
    if strategy.compile:
        # Types tell a class from one of the same name that was defined anew, in a notebook.
        kind = str(ready.model), *map(type, ready.model.modules()), strategy.autocast
        take = partial(take_compiled, kind=kind)

    def work(places: np.ndarray) -> object:
        with own_modes(clients.device):
            return work_here(ready.replica(), places)

    def work_here(replica: Replica, places: np.ndarray) -> object:
        starts, drawn = clients.starts[cohort[places]], [batches[i] for i in places]
        share = np.asarray(weights, dtype=np.float64)[places]
        repeats = 1
        if all(rows.strides[0] == 0 for rows in drawn):  # full batches: one array for all steps
            repeats, drawn = len(drawn[0]), [rows[:1] for rows in drawn]
        if strategy.merge:
            rows, within = merge_batches(starts, drawn, share)
            share = share.sum(keepdims=True)
        else:
            rows, within = stack_batches(starts, drawn)
        start = params
        if strategy.stack:
            start = {name: p.expand(len(places), *p.shape) for name, p in params.items()}
            if strategy.compile:  # a step's results are contiguous: one graph for all steps
                start = {name: p.contiguous() for name, p in start.items()}
        else:
            rows = rows[:, 0]

        def pick(rows: Params) -> Params:
            index = torch.as_tensor(places, device=clients.device)
            picked = {name: values[index] for name, values in rows.items()}
            return picked if strategy.stack else {n: p.squeeze(0) for n, p in picked.items()}

        start = start | pick(own) if own else start
        more = extra and pick({name: extra[name] for name in params if name in trainable})
        moved, losses = run_steps(
            partial(_stacked_loss if strategy.stack else _loss, replica, strategy.autocast),
            start,
            gather(clients, rows, within) * repeats
            if repeats > 1
            else gather(clients, rows, within),
            lr=lr,
            step=step,
            trainable=trainable,
            extra=more and list(more.values()),
            take=take,
        )
        if not strategy.stack:
            moved, losses = {name: p.unsqueeze(0) for name, p in moved.items()}, losses[None]
        trained = Trained(places, moved, losses, share)
        return trained if then is None else then(trained)

    jobs = _cut(params, clients, batches, strategy)
    together = strategy.stack or strategy.merge  # kernels large enough to use the threads
    threads = strategy.threads or (1 if together else torch.get_num_threads())
    if len(jobs) == 1 or threads == 1 or clients.device.type != "cpu":
        return [work(places) for places in jobs]
    futures = [_pool(threads).submit(work, places) for places in jobs]
    try:
        return [future.result() for future in futures]
    finally:  # after an error or Ctrl-C: nothing goes on in the background
        for future in futures:
            future.cancel()
        wait(futures)


def _check_cohort(
    params: Params,
    cohort: np.ndarray,
    batches: Sequence[np.ndarray],
    weights: np.ndarray,
    extra: Params | None,
    own: Params,
    trainable: Collection[str],
) -> None:
    rows = [("batches", batches), ("weights", weights), *(extra or {}).items(), *own.items()]
    for name, values in rows:
        if len(values) != len(cohort) or len(cohort) == 0:
            raise ValueError(
                f"Invalid {name} of {len(values)} rows: the cohort has {len(cohort)} clients. Give "
                "one row for each client, and at least one client."
            )
    lacking = [name for name in trainable if extra and name not in extra]
    if lacking:
        raise ValueError(
            f"Invalid extra: {lacking[0]} is missing. Give one tensor for each trainable parameter."
        )
    steps = {len(rows) for rows in batches}
    if len(steps) > 1 or 0 in steps:
        raise ValueError(
            f"Invalid batches: of {sorted(steps)} local steps. Give all clients the same number."
        )
    for argument, names in {"trainable": trainable, "own": own}.items():
        unknown = [name for name in names if name not in params]
        if unknown:
            raise ValueError(
                f"Invalid {argument}: {unknown[0]} is no parameter. Use names of params."
            )


def check_in_cohort(clients: ClientData, cohort: np.ndarray, batches: Sequence[np.ndarray]) -> None:
    """Refuse clients that are not there, and positions that are not theirs.

    Raises:
        TypeError: if they are not integers.
        ValueError: if one is outside the federation, or outside its client.
    """
    cohort = check_array("cohort", cohort, kinds="iu")
    if cohort.ndim != 1 or (len(cohort) and not 0 <= cohort.min() <= cohort.max() < len(clients)):
        raise ValueError(
            f"Invalid cohort={cohort.tolist()}: the federation's clients are 0 to "
            f"{len(clients) - 1}. Use ids of clients."
        )
    for client, rows in zip(cohort.tolist(), batches, strict=False):
        check_batches(rows, int(clients.sizes[client]))


def resolve_strategy(
    strategy: str | Strategy,
    ready: Ready,
    step: LocalStep,
    *,
    local_steps: int,
    trainable: Collection[str],
    own: Collection[str] = (),
    extra: bool = False,
) -> Strategy:
    """Return the strategy that a cohort is run by.

    Raises:
        TypeError: if the rule is none.
        ValueError: if the parameters cannot be trained, the rule breaks its contract, or clients
            cannot be stacked or merged, as the strategy says.
    """
    automatic = isinstance(strategy, str) and strategy == "auto"
    if not isinstance(strategy, Strategy):
        strategy = check_in("strategy", strategy, ["auto", *STRATEGIES])
        strategy = STRATEGIES[
            choose_strategy(ready.model, ready.clients.device) if automatic else strategy
        ]
    check_type("step", step, LocalStep, "Use sgd, momentum(0.9), proximal(0.1) or a LocalStep.")
    check_period(step, local_steps)
    names = [name for name in ready.params if name in set(trainable)]
    ready.check_trainable(names)
    moving = {name: ready.params[name] for name in names}
    tried = local_steps if strategy.stack else 1
    apart = check_rule(step, moving, extra=extra, local_steps=tried)
    if strategy.stack:
        apart = ready.why_apart(names) or apart
        if apart and not automatic:
            raise ValueError(
                f"Invalid strategy: it stacks clients, but {apart}. "
                'Use strategy="threads", which runs them one by one.'
            )
        if apart:
            if not ready.warned:
                ready.warned = True
                warnings.warn(
                    f"Clients are not stacked, since {apart}: they run one by one, as with "
                    'strategy="threads". Choose that to be rid of this warning.',
                    RuntimeWarning,
                    stacklevel=_outside(),
                )
            strategy = STRATEGIES["threads"]
    if strategy.merge and not (local_steps == 1 and step == sgd):
        raise ValueError(
            f"Invalid strategy: it merges clients, which needs local_steps=1 and SGD, not "
            f'{local_steps} and {step.name}. Use "auto" or "stacked".'
        )
    if strategy.merge and own:
        raise ValueError(
            f"Invalid strategy: it merges clients, but each has a {next(iter(own))} of its own. "
            'Use "auto" or "stacked".'
        )
    return strategy


def _outside() -> int:
    """Return how many calls up the user's own line is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("fedlib."):
        frame, level = frame.f_back, level + 1
    return level


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads with one thread each inside their kernels."""
    pool, before = ThreadPoolExecutor(threads, "fedlib"), torch.get_num_threads()
    meet = threading.Barrier(threads)

    def settle() -> None:
        torch.set_num_threads(1)
        meet.wait()

    wait([pool.submit(settle) for _ in range(threads)])
    # What a thread sets for itself is also what later threads start with, unless set back.
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # a forked child inherits no threads
    os.register_at_fork(after_in_child=_pool.cache_clear)

# What the clients of one job may hold together, in bytes. On a CPU: parameters and batches within
# the cache of one core. On a GPU: so that a few copies, and activations, stay far below its memory.
_ROOM = {"cpu": 4 * 2**20}
_ROOM_ON_GPU = 2 * 2**30
# Merged batches: examples in one forward pass.
_EXAMPLES = {"cpu": 256}
_EXAMPLES_ON_GPU = 2**14


def _cut(
    params: Params, clients: ClientData, batches: Sequence[np.ndarray], strategy: Strategy
) -> list[np.ndarray]:
    """Cut a cohort into jobs, each an array of places in the cohort."""
    cohort_size, device = len(batches), clients.device.type
    widths = np.array([rows.shape[1] for rows in batches])
    chunk = strategy.chunk
    per_example = clients.inputs[0].nbytes
    if strategy.merge:
        examples = _EXAMPLES.get(device, min(_EXAMPLES_ON_GPU, _ROOM_ON_GPU // per_example))
        chunk = chunk or max(1, examples // int(widths.max()))
    elif strategy.stack:
        held = sum(p.nbytes for p in params.values()) + per_example * int(widths.max())
        chunk = chunk or max(1, _ROOM.get(device, _ROOM_ON_GPU) // held)
    else:
        chunk = 1
    # Clients of about the same batch size together, so that little is padded.
    order = np.argsort(widths, kind="stable")
    return np.array_split(order, -(-cohort_size // chunk))


def _forward(
    call: Callable[[Params, Tensor], Tensor],
    autocast: torch.dtype | None,
    params: Params,
    x: Tensor,
) -> Tensor:
    if autocast is None:
        return call(params, x)
    with torch.autocast(x.device.type, autocast):
        outputs = call(params, x)
    own = (p.dtype for p in params.values() if p.is_floating_point())
    return outputs.to(next(own, outputs.dtype))


def _loss(
    replica: Replica,
    autocast: torch.dtype | None,
    params: Params,
    x: Tensor,
    y: Tensor,
    shares: Tensor | None,
) -> Tensor:
    """Return one client's loss, or one weighted loss of merged clients; scalar."""
    outputs = _forward(replica, autocast, params, x)
    if shares is None:
        return task_loss(outputs, y)
    losses = example_losses(outputs, y)
    return losses @ shares.to(losses.dtype)


def _stacked_loss(
    replica: Replica,
    autocast: torch.dtype | None,
    params: Params,
    x: Tensor,
    y: Tensor,
    shares: Tensor | None,
) -> Tensor:
    """Return the losses of k clients, shape (k,)."""
    outputs = _forward(replica.stacked, autocast, params, x)
    losses = example_losses(outputs.flatten(0, 1), y.flatten()).view(y.shape)
    return losses.mean(1) if shares is None else (losses * shares.to(losses.dtype)).sum(1)
