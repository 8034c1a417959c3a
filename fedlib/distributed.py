"""Several processes, on one machine or many: each trains its share of every cohort.

A script that joins is started by ``torchrun``, which comes with PyTorch::

    import fedlib as fl

    with fl.distributed.join() as rank:
        clients = fl.load_clients("federation", device=rank.device)
        model = fl.CNN((3, 32, 32), 10).to(rank.device)
        result = fl.run_fedavg(model, clients, config, seed=0, checkpoint="run.safetensors")

Two processes on this machine, all started again, up to three times, if one of them dies::

    torchrun --standalone --nproc-per-node=2 --max-restarts=3 script.py

Two machines with eight GPUs each, by the same commands on both; HOST is the name of one of them.
(Without the first, a rank that is started again may look for the others where they were before:
pytorch/pytorch#135712)::

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=3 --rdzv-backend=c10d
        --rdzv-endpoint=HOST:29500 --rdzv-id=NAME script.py

Started by plain ``python script.py``, it runs in one process. Every rank draws the same cohort and
the same batches; what is sent is one sum over all ranks per round, and rank 0's metrics. The result
is that of one process up to rounding. Ranks end with the same bits, and a run that is resumed with
as many ranks has the bits of one that was never stopped. Rank 0 alone shows progress, calls
``metrics``, and reads and writes the checkpoint: several machines that may be started again need a
disk that all of them see.
"""

__all__ = ["Rank", "all_reduce", "broadcast", "check_same", "join", "rank", "shard"]

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from fedlib._checks import check_array, check_in, check_int, check_number

T = TypeVar("T")


class Rank(NamedTuple):
    """A process among those that run together.

    Attributes:
        rank: its number, 0 to world_size - 1.
        world_size: number of processes.
        device: where it computes.
    """

    rank: int
    world_size: int
    device: torch.device


@contextmanager
def join(
    *, device: str | None = None, threads: int | None = None, timeout: float = 1800.0
) -> Iterator[Rank]:
    """Join the processes that ``torchrun`` started; without it, be the only one.

    Inside, ``run_fedavg``, ``run_round``, ``map_clients`` and ``sum_clients`` share their work
    among all ranks, which must call them with the same arguments.

    Args:
        device: "cpu", or "cuda" for one GPU per process; None takes GPUs if there are any.
        threads: threads of this process on the CPU; None takes its share of the machine's cores,
            and if it is the only one, changes nothing.
        timeout: how long a rank waits for the others, in seconds; ``metrics`` may not take longer.

    Yields:
        This process's rank, with its device.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument or one of torchrun's variables is out of range, or there are
            fewer GPUs than processes.
        RuntimeError: if the other ranks are not met in time.

    Example:
        >>> with join(device="cpu") as rank:
        ...     print(rank)
        Rank(rank=0, world_size=1, device=device(type='cpu'))
    """
    device = check_in("device", device, [None, "cpu", "cuda"])
    timeout = check_number("timeout", timeout, above=0, most=1e7)  # four months
    if threads is not None:
        threads = check_int("threads", threads, 1, 10_000)
    count, local_count = _variable("WORLD_SIZE", 1, 1), _variable("LOCAL_WORLD_SIZE", 1, 1)
    index = _variable("RANK", 0, 0, count - 1)
    local_index = _variable("LOCAL_RANK", 0, 0, local_count - 1)
    gpus = torch.cuda.device_count()
    if device == "cuda" or (device is None and gpus):
        if gpus < local_count:
            raise ValueError(
                f"Invalid device={device!r}: {local_count} processes on this machine, but {gpus} "
                f'GPUs. Use torchrun --nproc-per-node={max(gpus, 1)}, or device="cpu".'
            )
        here = torch.device("cuda", local_index)
        torch.cuda.set_device(here)
    else:
        here = torch.device("cpu")
    before = torch.get_num_threads()
    try:
        if threads is None and count > 1:
            threads = max(1, _cores() // local_count)
        torch.set_num_threads(threads or before)
        if count > 1:
            backend = "gloo" if here.type == "cpu" else "cpu:gloo,cuda:nccl"
            patience = timedelta(seconds=timeout)
            store = _rendezvous(patience)
            if count == local_count:
                # torchrun's store outlives the ranks: those it starts again must not find the
                # addresses of those before. On several machines, their counts of restarts differ.
                store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            dist.init_process_group(
                backend, store=store, rank=index, world_size=count, timeout=patience
            )
        try:
            yield Rank(index, count, here)
        finally:
            if count > 1:
                dist.destroy_process_group()
    finally:
        torch.set_num_threads(before)


def _variable(name: str, default: int, least: int, most: int = 2**31) -> int:
    """Read a variable of the environment that ``torchrun`` sets."""
    text = os.environ.get(name, str(default))
    try:
        return check_int(name, int(text), least, most)
    except ValueError as error:
        raise ValueError(
            f"Invalid environment variable {name}={text!r}: must be {least} to {most}. "
            "Start the script by torchrun, or unset RANK, WORLD_SIZE and their kin."
        ) from error


def _rendezvous(patience: timedelta) -> dist.Store:
    """Meet the other ranks; give up in time, even if another program answers at the address."""
    met: list = []

    def meet() -> None:
        try:
            met.append(next(dist.rendezvous("env://", timeout=patience))[0])
        except Exception as error:
            met.append(error)

    # In a thread: PyTorch waits for ever for the first words of a program that is no rank.
    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(1.1 * patience.total_seconds() + 1)
    if met and not isinstance(met[0], Exception):
        return met[0]
    reason = str(met[0]).partition("\n")[0] if met else "whoever is there does not answer as one"
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    raise RuntimeError(
        f"Cannot meet the other ranks at {address} ({reason}). Start all by torchrun, which "
        "chooses a free port; or set MASTER_ADDR and MASTER_PORT to a free port of rank 0."
    ) from (met[0] if met else None)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rank() -> tuple[int, int]:
    """Return this process's number, and how many there are: ranks of torch's default group.

    Example:
        >>> rank()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shard(work: Int[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
    """Return the places in the cohort that this rank trains; all, if it is the only one.

    The largest client goes first, each to the rank that has least to do so far. So no rank has
    more to do than another by more than one client.

    Args:
        work: what each client of the cohort costs, in examples, say; shape (m,).

    Returns:
        Places in ascending order, shape (k,); none if there are fewer clients than ranks.
    """
    work = check_array("work", work, kinds="iu").astype(np.int64)
    if work.ndim != 1 or (work.size and work.min() < 0):
        raise ValueError("Invalid work: not one number >= 0 per client. Use numbers of examples.")
    index, count = rank()
    load, owner = np.zeros(count, dtype=np.int64), np.zeros(len(work), dtype=np.int64)
    for place in np.argsort(-work, kind="stable") if count > 1 else ():
        owner[place] = load.argmin()
        load[owner[place]] += work[place]
    return np.flatnonzero(owner == index)


def all_reduce(tensors: list[Tensor]) -> list[Tensor]:
    """Return the sums over all ranks, the same bits on each; one message for each dtype.

    Args:
        tensors: of the same shapes and dtypes on every rank.

    Returns:
        The sums, in order; the tensors themselves if this process is the only one.

    Raises:
        RuntimeError: if another rank stopped.
    """
    if rank()[1] == 1:
        return tensors
    sums = list(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[i].flatten() for i in places])
        with _together():
            dist.all_reduce(flat)
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
            sums[i] = part.view(tensors[i].shape)
    return sums


def broadcast(value: T, *, device: torch.device | str = "cpu") -> T:
    """Return rank 0's value on every rank.

    Args:
        value: numbers, strings and tensors, in tuples, lists and dicts; read on rank 0 only.
        device: where its tensors shall live. Their strides stay.

    Returns:
        The value; on rank 0, and if this process is the only one, the same object.

    Raises:
        RuntimeError: if another rank stopped.
    """
    index, count = rank()
    if count == 1:
        return value
    file = io.BytesIO()
    if index == 0:
        torch.save(value, file)
    box = [file.getvalue()]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return value if index == 0 else torch.load(io.BytesIO(box[0]), device, weights_only=True)


def check_same(values: Mapping[str, object]) -> None:
    """Refuse values that are not the same on every rank; all ranks refuse together.

    Args:
        values: what to compare, by name.

    Raises:
        ValueError: if a value differs; the message tells the first rank where it does.
        RuntimeError: if another rank stopped.
    """
    count = rank()[1]
    if count == 1:
        return
    everyone: list = [None] * count
    with _together():
        dist.all_gather_object(everyone, dict(values))
    differs = [
        f"{name}={everyone[0].get(name)} on rank 0, {other.get(name)} on rank {i}"
        for i, other in enumerate(everyone)
        for name in {**everyone[0], **other}
        if other.get(name) != everyone[0].get(name)
    ]
    if differs:
        raise ValueError(
            f"Invalid arguments: {differs[0]}. Ranks share one run: give all of them the same."
        )


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"Rank {rank()[0]} lost another rank, which stopped or did not answer in time "
            f"({str(error).splitlines()[0]}). Look for that rank's error; started again, a run "
            "with a checkpoint goes on."
        ) from error
