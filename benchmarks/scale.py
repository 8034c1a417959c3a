"""What several processes cost, and federations larger than memory: each figure from a child.

``python -m benchmarks.scale FOLDER OUTPUT WORK ROUNDS`` is such a child, alone or under torchrun.
"""

__all__ = ["scale", "text"]

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np

import fedlib as fl
from benchmarks.runner import execute
from benchmarks.work import QUICK, SMALL, WORKLOADS, Workload, build

AGREED = 2
"""Rounds before the timed ones; after them parameters are compared."""
RANKS = replace(WORKLOADS["IMG"], num_clients=40, cohort_size=20)
CLIENTS = replace(SMALL, hidden=32, cohort_size=1_000, local_steps=5, batch_size=5)
QUICK_RANKS = replace(QUICK["IMG"], cohort_size=4)
QUICK_CLIENTS = replace(CLIENTS, cohort_size=10, local_steps=2)


def scale(*, quick: bool = False, rounds: int = 5, repeats: int = 2) -> dict[str, dict]:
    """Measure more processes, more clients, and larger cohorts out of many clients.

    Args:
        quick: measure something small, for tests.
        rounds: rounds that a child times.
        repeats: children for each number of ranks, which take turns.

    Returns:
        ``ranks``: by number of processes, one thread each, their ``seconds`` a round (median and
        range); the ``efficiency`` of two; and the largest absolute ``difference`` of a parameter
        that their number makes in two rounds. ``clients`` and ``cohort``: by number of clients in
        the federation, or in the cohort out of the largest federation, ``seconds`` a round, the
        memory beside mapped files that data and rounds hold in the end, and the bytes on disk.

    Raises:
        RuntimeError: if a child fails.
    """
    ranks, clients = (QUICK_RANKS, QUICK_CLIENTS) if quick else (RANKS, CLIENTS)
    sweep = (20, 40, 80) if quick else (1_000, 10_000, 100_000)
    cohorts = (2, 5, 10) if quick else (10, 100, 1_000)
    record = {"ranks": {}, "clients": {}, "cohort": {}}
    with tempfile.TemporaryDirectory() as path:
        _write(Path(path), ranks)
        record["ranks"] = _ranks(Path(path), ranks, rounds, repeats)
    for number in sweep:
        with tempfile.TemporaryDirectory() as path:
            work = replace(clients, num_clients=number)
            _write(Path(path), work)
            size = sum(file.stat().st_size for file in Path(path).iterdir())
            for m in cohorts if number == sweep[-1] else [work.cohort_size]:
                found = _child(path, replace(work, cohort_size=m), rounds=2 * rounds)
                figures = {
                    "seconds": median(found["round_seconds"]),
                    "anonymous_megabytes": found["anonymous_megabytes"],
                    "bytes_on_disk": size,
                }
                if m == work.cohort_size:
                    record["clients"][str(number)] = figures
                if number == sweep[-1]:
                    record["cohort"][str(m)] = figures
    return record


def text(record: Mapping[str, dict]) -> str:
    """Return the figures as text."""
    ranks = record["ranks"]
    lines = [
        "{} rank{}: {:.4f} s/round ({:.4f}–{:.4f})".format(
            count, "s" * (count > "1"), ranks[count]["seconds"], *ranks[count]["seconds_range"]
        )
        for count in ("1", "2")
    ]
    lines.append("efficiency {efficiency:.2f}, difference {difference:.1e}".format(**ranks))
    for name in ("clients", "cohort"):
        for number, f in record[name].items():
            lines.append(
                f"{name} {number}: {f['seconds']:.4f} s/round, {f['anonymous_megabytes']:.0f} MB "
                f"of {f['bytes_on_disk'] / 1e6:.0f} MB"
            )
    return "\n".join(lines)


def _write(folder: Path, work: Workload) -> None:
    def client(i: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([0, i])
        inputs = rng.standard_normal((work.size, *work.shape), dtype=np.float32)
        return inputs, rng.integers(0, 10, work.size)

    fl.save_clients(folder, map(client, range(work.num_clients)))


def _ranks(folder: Path, work: Workload, rounds: int, repeats: int) -> dict:
    times, params = {1: [], 2: []}, {}
    for _ in range(repeats):
        for count in times:
            found = _child(folder, work, rounds=rounds, ranks=count)
            times[count] += found["round_seconds"]
            params[count] = [np.array(p) for p in found["params"]]
    seconds = {count: median(times[count]) for count in times}
    differences = [np.abs(a - b).max() for a, b in zip(params[1], params[2], strict=True)]
    return {
        str(count): {"seconds": seconds[count], "seconds_range": [min(s), max(s)], "rounds": len(s)}
        for count, s in times.items()
    } | {"efficiency": seconds[1] / (2 * seconds[2]), "difference": float(max(differences))}


def _child(folder: Path | str, work: Workload, *, rounds: int, ranks: int | None = None) -> dict:
    """Run this file in a process of its own, or in several that are joined."""
    with tempfile.TemporaryDirectory() as path:
        output = Path(path) / "figures.json"
        command = [sys.executable, "-m"]
        if ranks:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        command += ["benchmarks.scale", folder, output, json.dumps(asdict(work)), str(rounds)]
        return execute(command, output, threads=1)


def _anonymous_megabytes() -> float:
    """Return the memory that is this process's own, without the pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024 / 1e6


def _rounds(folder: Path, work: Workload, rounds: int) -> dict:
    """Time rounds on a federation that lies in a folder."""
    before = _anonymous_megabytes()
    clients, model, seconds = fl.load_clients(folder), build(work), []
    config = work.config()
    params = fl.params_of(model)
    for t in range(AGREED + rounds):
        began, rng = time.perf_counter(), np.random.default_rng([0, t])
        params, _ = fl.run_round(model, params, clients, config, rng=rng)
        seconds.append(time.perf_counter() - began)
        if t + 1 == AGREED:
            agreed = [p.flatten().tolist() for p in params.values()]
    return {
        "round_seconds": seconds[AGREED:],
        "anonymous_megabytes": _anonymous_megabytes() - before,
        "params": agreed,
    }


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("work", type=json.loads)
    parser.add_argument("rounds", type=int)
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of this machine only
    with fl.distributed.join(device="cpu", threads=1) as rank:
        found = _rounds(options.folder, Workload(**options.work), options.rounds)
    if rank.rank == 0:
        options.output.write_text(json.dumps(found))


if __name__ == "__main__":
    _main()
