"""What the machine could do at best, to hold times against."""

__all__ = ["machine"]

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine(*, quick: bool = False) -> dict:
    """Return the processor's name, and measured roofs of arithmetic and memory.

    Args:
        quick: measure something small, for tests.
    """
    side, floats = (64, 2**12) if quick else (2048, 2**27)
    matrix, source, target = torch.ones(side, side), torch.ones(floats), torch.ones(floats)
    load, before, figures = round(os.getloadavg()[0], 2), torch.get_num_threads(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        name = f"{threads} thread{'s' * (threads > 1)}"
        figures[name] = {
            "matmul_gflops": 2 * side**3 / _best(lambda: matrix @ matrix) / 1e9,
            # Every number is read once and written once.
            "copy_gigabytes_per_second": 8 * floats / _best(lambda: target.copy_(source)) / 1e9,
        }
    torch.set_num_threads(before)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "roof": figures,
    }


def _best(run: Callable[[], object], *, repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()
