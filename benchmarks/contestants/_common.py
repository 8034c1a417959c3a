"""What all contestants share: reading the work, the clock, the report. NumPy and psutil only."""

__all__ = ["Clock", "Work", "arguments"]

import argparse
import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil

AGREED = 2
"""After this many rounds parameters are written down, to be compared."""


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path, help="what to do, from benchmarks.work.make")
    parser.add_argument("output", type=Path, help="the report; the parameters go beside it")
    parser.add_argument("--setting", required=True, help="a way to run this contestant")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to time, at least")
    parser.add_argument("--seconds", type=float, default=0.0, help="time rounds for so long")
    parser.add_argument("--warmup", type=int, default=AGREED, help="rounds before those")
    return parser.parse_args()


def _read_aligned(path: Path, name: str) -> np.ndarray:
    """Read one array to where vector instructions like it, and frameworks need not copy it."""
    with zipfile.ZipFile(path) as file, file.open(f"{name}.npy") as entry:
        np.lib.format.read_magic(entry)
        shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
        size = math.prod(shape) * dtype.itemsize
        memory = np.empty(size + 64, np.uint8)
        start = -memory.ctypes.data % 64
        array = memory[start : start + size]
        entry.readinto(array)
    return array.view(dtype).reshape(shape)


class Work:
    """A workload, read from its file: the numbers as attributes, and the arrays.

    Attributes:
        start: initial parameters by torch's names.
        inputs: all inputs, client 0's first; read when they are asked for.
        targets: all targets; the same.
        model, shape, hidden, num_clients, size, ...: as in ``benchmarks.work.Workload``.
    """

    def __init__(self, path: Path) -> None:
        self._path, file = path, np.load(path)
        self.__dict__.update(json.loads(str(file["work"])))
        self._cohorts, self._batches = file["cohorts"], file["batches"]
        self.start = {k.removeprefix("start/"): file[k] for k in file if k.startswith("start/")}

    @cached_property
    def inputs(self) -> np.ndarray:
        """All inputs."""
        return _read_aligned(self._path, "inputs")

    @cached_property
    def targets(self) -> np.ndarray:
        """All targets."""
        return _read_aligned(self._path, "targets")

    def client(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a client's inputs and targets, without copying."""
        rows = slice(i * self.size, (i + 1) * self.size)
        return self.inputs[rows], self.targets[rows]

    @property
    def drawn(self) -> int:
        """How many rounds were drawn."""
        return len(self._cohorts)

    def cohort(self, t: int) -> np.ndarray:
        """Return the ids of the clients of round t."""
        return self._cohorts[t % self.drawn]

    def batches(self, t: int) -> np.ndarray:
        """Return the positions of round t, shape (cohort, local_steps, batch_size)."""
        return self._batches[t % self.drawn]

    def positions(self, t: int) -> dict[int, np.ndarray]:
        """Return the batches of round t by client."""
        return dict(zip(self.cohort(t).tolist(), self.batches(t), strict=True))


class Clock:
    """Times rounds, and says when there were enough.

    Call it once after every round, where the framework holds the loop; it returns whether to go
    on. Its own work is not timed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._round, self._times = options, 0, []
        self._began = time.perf_counter()

    def __call__(self, params: Callable[[], Mapping[str, np.ndarray]]) -> bool:
        """Note the end of a round.

        Args:
            params: returns the server's parameters by torch's names, when they are wanted.

        Returns:
            Whether to run another round.
        """
        seconds, options = time.perf_counter() - self._began, self._options
        self._round += 1
        warmup = max(options.warmup, AGREED)
        if self._round == 1:
            self._first = time.time() - psutil.Process().create_time()
        if self._round == AGREED:
            np.savez(options.output.with_suffix(".npz"), **params())
        if self._round > warmup:
            self._times.append(seconds)
        enough = len(self._times) >= options.rounds and sum(self._times) >= options.seconds
        if enough:
            self._report()
        if self._round == warmup:
            self._cpu = _cpu_seconds()
        self._began = time.perf_counter()
        return not enough

    def loop(
        self, one_round: Callable[[int], None], params: Callable[[], Mapping[str, np.ndarray]]
    ) -> None:
        """Run round after round, from the first to the last that is wanted."""
        one_round(0)
        while self(params):
            one_round(self._round)

    def _report(self) -> None:
        cpu = _cpu_seconds() - self._cpu
        report = {
            "round_seconds": self._times,
            "cpu_seconds": cpu / len(self._times),
            "peak_megabytes": _peak_bytes() / 1e6,
            "first_round_seconds": self._first,
        }
        self._options.output.write_text(json.dumps(report))


def _tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_seconds() -> float:
    """Return the processor time of this process and all below it, also those that have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in _tree())


def _peak_bytes() -> int:
    """Return the most memory that the processes of the tree held, without watching them.

    Each has a high-water mark, kept by the system; what processes share is counted once. An upper
    bound, since they need not have been at their highest together. Where the system keeps no such
    mark (it does on Linux), what they hold now.
    """
    total = 0
    for process in _tree():
        resident, held = process.memory_info().rss, process.memory_full_info()
        status = Path(f"/proc/{process.pid}/status")
        highest = resident
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            highest = int(fields["VmHWM"].split()[0]) * 1024
        total += getattr(held, "pss", held.rss) + max(highest - resident, 0)
    return total
