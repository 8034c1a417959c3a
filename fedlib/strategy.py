"""Strategies: the ways a cohort can run, and the only place that chooses one."""

__all__ = ["STRATEGIES", "Strategy", "choose_strategy", "resolve_strategy"]

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedlib._checks import check_bool, check_in, check_positive_int, outside
from fedlib.rules import LocalStep, sgd
from fedlib.validate import Ready, check_period, check_rule, check_step

ROOM = {"cpu": 4 * 2**20}
"""What the clients of one job may hold together, in bytes, by type of device. On a CPU: parameters
and batches within the cache of one core. ``ROOM_ON_GPU``: so that a few copies, and activations,
stay far below a GPU's memory."""
ROOM_ON_GPU = 2 * 2**30


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


def choose_strategy(model: nn.Module, device: torch.device) -> str:
    """Choose the strategy that is fastest as a rule, among those that keep clients apart.

    A GPU wants one large kernel rather than many small ones: stacked. So do small fully connected
    nets on a CPU, where calling a kernel costs more than its work; but the convolutions of a stack
    run slower there than one client's, and of wide nets the parameters of not even two clients fit
    into the cache: these run one client per thread. Recurrent layers cannot be stacked at all.
    """

    def has(layer: type[nn.Module]) -> bool:
        return any(isinstance(module, layer) for module in model.modules())

    wide = 2 * sum(p.nbytes for p in model.parameters()) > ROOM["cpu"]
    slow = device.type == "cpu" and (wide or has(nn.modules.conv._ConvNd))
    return "threads" if slow or has(nn.RNNBase) else "stacked"


def resolve_strategy(
    strategy: str | Strategy,
    ready: Ready,
    rule: LocalStep,
    *,
    local_steps: Sequence[int],
    trainable: Sequence[str],
    client_params: Collection[str] = (),
    client_state: bool = False,
    merges: bool = False,
    once: bool = False,
) -> Strategy:
    """Return the strategy that cohorts are run by.

    Args:
        strategy: what was asked for.
        ready: the model.
        rule: the local rule.
        local_steps: the numbers of local steps that clients may take.
        trainable: names of the parameters that move.
        client_params: names of the parameters that each client has for itself.
        client_state: whether the rule's ``init`` is given something.
        merges: "auto" may merge clients, whose sum alone is wanted.
        once: tell only once for each model that its clients cannot be stacked.

    Raises:
        TypeError: if the rule is none.
        ValueError: if the parameters cannot be trained, the rule breaks its contract, or clients
            cannot be stacked or merged, as the strategy says.
    """
    check_step(rule)
    most = max(local_steps)
    mergeable = set(local_steps) == {1} and rule == sgd and not client_params
    automatic = isinstance(strategy, str) and strategy == "auto"
    if automatic:
        device = ready.clients.device
        name = "merged" if merges and mergeable else choose_strategy(ready.model, device)
        strategy = STRATEGIES[name]
    elif not isinstance(strategy, Strategy):
        strategy = STRATEGIES[check_in("strategy", strategy, ["auto", *STRATEGIES])]
    for steps in local_steps:
        check_period(rule, steps)
    names = [name for name in ready.params if name in set(trainable)]
    ready.check_trainable(names)
    moving = {name: ready.params[name] for name in names}
    tried = most if strategy.stack else 1
    apart = check_rule(rule, moving, extra=client_state, local_steps=tried)
    if strategy.stack:
        apart = ready.why_apart(names) or apart
        if apart and not automatic:
            raise ValueError(
                f"Invalid strategy: it stacks clients, but {apart}. "
                'Use strategy="threads", which runs them one by one.'
            )
        if apart:
            _tell(ready, apart, once)
            strategy = STRATEGIES["threads"]
    if not strategy.merge:
        return strategy
    if client_params:
        why = f"each has a {next(iter(client_params))} of its own"
    elif not mergeable:
        why = f"which needs local_steps=1 and SGD, not {most} and {rule.name}"
    elif not merges:
        why = "each client's own parameters are asked for"
    else:
        return strategy
    but = "" if why.startswith("which") else "but "
    raise ValueError(f'Invalid strategy: it merges clients, {but}{why}. Use "auto" or "stacked".')


def _tell(ready: Ready, why: str, once: bool) -> None:
    if once and "told" in ready.verdict.found:  # rounds come in loops
        return
    if once:
        ready.verdict.found["told"] = True
    if not ready.told:
        ready.told = True
        warnings.warn(
            f"Clients are not stacked, since {why}: they run one by one, as with "
            'strategy="threads". Choose that to be rid of this warning.',
            RuntimeWarning,
            stacklevel=outside(),
        )
