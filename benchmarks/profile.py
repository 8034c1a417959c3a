"""Where a round's time goes: into which kernels, and between them."""

__all__ = ["STRATEGIES", "bytes_of", "flops_of", "profile"]

import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

import fedlib as fl
from benchmarks.contestants._common import Work
from benchmarks.work import Workload, build, make

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs each start and stop

STRATEGIES = {"IMG": "loop", "IMG1": "merged", "LIN": "stacked", "MLP": "stacked"}
"""What fedlib chooses for each workload; its threads are a loop, if there is but one."""

CATEGORIES = ["convolution", "matrix product", "pooling", "pointwise and rest", "outside kernels"]


def profile(work: Workload, strategy: str, *, repeats: int = 5) -> dict:
    """Take one round apart, on one thread.

    A kernel is an operator that reads or writes numbers. Its time, without that of the operators it
    calls, is little inflated by the profiler, whose own work falls between the operators. What is
    between them is therefore not taken from the profile: it is the time of a round without profiler
    that the kernels leave, or none, if they leave none. Rounds with and without profiler take
    turns. The parts are those of the least disturbed rounds, the shortest time of each, and are
    scaled to the median round. Of a loop, where clients come one after the other, one client is
    profiled, and stands for all.

    Args:
        work: the workload.
        strategy: how fedlib runs it.
        repeats: rounds of either kind; short rounds get up to five times as many.

    Returns:
        ``seconds`` of a round, their ``categories``, which add up to them; ``flops``; ``bytes``.
    """
    # The time does not depend on how many clients wait.
    work = replace(work, num_clients=min(work.num_clients, 2 * work.cohort_size))
    clients, model = _federation(work), build(work)
    config = work.config()
    params = fl.params_of(model)
    share = work.cohort_size if strategy == "loop" else 1
    part = replace(config, cohort_size=work.cohort_size // share)

    def one_round(config: fl.FedAvgConfig, t: int) -> float:
        began, rng = time.perf_counter(), np.random.default_rng([0, t])
        fl.run_round(model, params, clients, config, rng=rng, strategy=strategy)
        return time.perf_counter() - began

    seconds, kernels, before = [], [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(seconds) < repeats or (sum(seconds) < 0.5 and len(seconds) < 5 * repeats):
            t = len(seconds)
            one_round(part, t)  # reading a profile leaves the caches cold
            seconds.append(one_round(config, t))
            with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as watched:
                one_round(part, t)
            kernels.append(_by_category(watched))
    finally:
        torch.set_num_threads(before)
    inside = {name: share * min(found[name] for found in kernels) for name in CATEGORIES[:-1]}
    whole, least, total = median(seconds), min(seconds), sum(inside.values())
    parts = inside | {CATEGORIES[-1]: max(0.0, least - total)}
    return {
        "flops": flops_of(work),
        "bytes": bytes_of(work, merged=strategy == "merged"),
        "seconds": whole,
        "categories": {name: part * whole / max(least, total) for name, part in parts.items()},
    }


def flops_of(work: Workload) -> int:
    """Return the floating point operations of one round, in matrix products and convolutions.

    A multiplication and an addition count as two. Every step of every client takes as many.
    """
    model = build(work)
    with FlopCounterMode(display=False) as counter:
        fl.task_loss(model(torch.zeros(work.batch_size, *work.shape)), _targets(work)).backward()
    return counter.get_total_flops() * work.local_steps * work.cohort_size


def bytes_of(work: Workload, *, merged: bool = False) -> int:
    """Return the least that one round moves, if only batches and activations stay in the cache.

    In a step parameters are read by the forward pass and the update, those that carry a gradient
    further (all weights but the first layer's) by the backward pass as well; gradients are written
    and read; new parameters are written; and a batch is read.

    Args:
        work: the workload.
        merged: whether all clients of the one step share parameters and gradient.
    """
    params = list(build(work).parameters())
    weights = [p for p in params if p.ndim > 1]
    step = 5 * sum(p.nbytes for p in params) + sum(p.nbytes for p in weights[1:])
    example = 4 * int(np.prod(work.shape)) + _targets(work).itemsize
    batches = work.cohort_size * work.local_steps
    return (1 if merged else batches) * step + batches * work.batch_size * example


def _targets(work: Workload) -> torch.Tensor:
    dtype = torch.float32 if work.model == "linear" else torch.int64
    return torch.zeros(work.batch_size, dtype=dtype)


def _federation(work: Workload) -> fl.ClientData:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.npz"
        make(work, path)
        data = Work(path)
        inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    return fl.ClientData(inputs, targets, np.full(work.num_clients, work.size))


def _by_category(watched: torch.profiler.profile) -> Counter:
    seconds = Counter()
    for event in watched.key_averages():
        space, _, name = event.key.partition("::")
        if space == "aten" and _computes(name):
            seconds[_category(name)] += event.self_cpu_time_total / 1e6
    return seconds


def _computes(name: str) -> bool:
    """Whether an operator is more than a view, or a name for several others."""
    packet = getattr(torch.ops.aten, name)
    operator = getattr(packet, packet.overloads()[0])
    several = operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return not operator.is_view and not several


def _category(name: str) -> str:
    if "convolution" in name:
        return "convolution"
    if name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"):
        return "matrix product"
    return "pooling" if "pool" in name else "pointwise and rest"
