"""Stored results: JSON files with a record of how they came about."""

__all__ = [
    "PROVENANCE",
    "cache_of",
    "commit_of",
    "compute_seconds",
    "digest",
    "entries",
    "load_result",
    "provenance",
    "run_units",
    "save_result",
]

import ast
import hashlib
import inspect
import json
import multiprocessing as mp
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

from fedlib.stored import PROVENANCE, load_result

LIBRARY = Path(__file__).parent.parent


def save_result(path: Path, record: Mapping) -> None:
    """Write a result, sorted, an entry or list of numbers a line: a re-run is a small diff."""
    text = json.dumps(record, indent=1, sort_keys=True)
    text = re.sub(r"\[[-+0-9.eE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def commit_of(folder: Path = LIBRARY) -> str:
    """Name the commit that a folder's files are at; "-dirty" if they differ from it.

    What changed elsewhere in the repository, such as the result just written, does not matter.
    To be asked when an experiment starts: later, files may have changed that it did not run.
    """
    git = ["git", "-C", str(folder)]
    try:
        commit, changes = (
            subprocess.run([*git, *asked], capture_output=True, text=True, check=True).stdout
            for asked in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not run from a git checkout)"
    return commit.strip() + ("-dirty" if changes else "")


def provenance(name: str, *, seeds: Iterable[int], wall_seconds: float, commit: str) -> dict:
    """Say how a result came about: command, commit, date, device, seeds, versions, wall time.

    Of a run that was stopped and went on, commit, date and wall time are those of the last session.
    """
    return {
        "command": f"python -m fedlib.experiments {name}",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "seeds": list(seeds),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "numpy", "matplotlib")},
        "wall_seconds": max(1, round(wall_seconds)),
    }


def cache_of(output: Path, name: str, design: Mapping, *, file: str) -> Path:
    """Return an experiment's file of finished units: another for other constants or other code."""
    return output / f"{name}.{digest(design, file=file)[:8]}.partial.jsonl"


def digest(values: object, *, file: str) -> str:
    """Return hexadecimal digits that change with plain values and the code that works on them.

    The code is the library's, that of Part III's studies, and that in ``file``, a module's own
    ``__file__``; and torch's version counts.
    """
    here = Path(__file__).parent
    files = {*LIBRARY.glob("*.py"), here / "cifar.py", here / "study.py", Path(file)}
    code = [(each.name, _code(each)) for each in sorted(files)]
    everything = json.dumps([code, metadata.version("torch"), values], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()


@cache
def _code(file: Path) -> str:
    """Return a module's code without comments and docstrings, whose wording changes no result."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [s for s in node.body if not _is_text(s)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def run_units(
    function: Callable[..., dict], units: list[dict], *, cache: Path, workers: int, label: str
) -> list[dict]:
    """Compute ``function(**unit)`` for every unit in parallel processes; stopped work resumes.

    Each result is appended to ``cache`` as it comes, and what is there already is not run again;
    so its name must change with the code and constants behind ``function``, as ``cache_of``'s does.

    Args:
        function: a module-level function whose arguments and result are plain JSON values.
        units: its keyword arguments.
        cache: JSON-lines file of finished units; several functions may share it.
        workers: processes; each uses one thread, so that they do not disturb one another.
        label: shown beside the progress bar.

    Returns:
        One result per unit, in order.

    Raises:
        RuntimeError: if a worker was killed, or the code has changed since it was planned with.
        Exception: the first that a unit raised; what ran beside it is finished and kept.
    """
    name = function.__name__
    done = {_key(entry["function"], entry["unit"]): entry["result"] for entry in entries(cache)}
    torn = cache.exists() and not f"\n{cache.read_text()}".endswith("\n")
    missing = [unit for unit in units if _key(name, unit) not in done]
    if missing:
        with cache.open("a") as file:
            if torn:
                file.write("\n")
            work = _in_parallel(function, missing, workers)
            for unit, result, seconds in tqdm(work, desc=label, total=len(missing)):
                line = {"function": name, "unit": unit, "result": result, "seconds": seconds}
                file.write(json.dumps(line) + "\n")
                file.flush()
                done[_key(name, unit)] = result
    return [done[_key(name, unit)] for unit in units]


def _key(function: str, unit: dict) -> str:
    return json.dumps([function, unit], sort_keys=True)


def _in_parallel(
    function: Callable[..., dict], units: Iterable[dict], workers: int
) -> Iterator[tuple[dict, dict, float]]:
    """Yield every unit with its result and processor time; after a failure, what was begun."""
    planned = digest(None, file=inspect.getfile(function))
    waiting, running, failure = iter(units), {}, None
    spawn = dict(mp_context=mp.get_context("spawn"))
    try:
        with ProcessPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(1,), **spawn
        ) as pool:
            while True:
                # No more than can run at once: what is queued in the pool cannot be cancelled.
                for unit in islice(waiting, 0 if failure else workers - len(running)):
                    running[pool.submit(_call, function, unit, planned)] = unit
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unit = running.pop(future)
                    if error := future.exception():
                        error.add_note(f"In {function.__name__}(**{unit}).")
                        failure = failure or error
                    else:
                        yield unit, *future.result()
        if failure:
            raise failure
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker was killed, perhaps for want of memory. Use fewer --workers; what is "
            "finished is kept."
        ) from error


def _call(function: Callable[..., dict], unit: dict, planned: str) -> tuple[dict, float]:
    if digest(None, file=inspect.getfile(function)) != planned:
        raise RuntimeError(
            "The library's code changed while this ran. Start it again: what was finished before "
            "the change is kept, and serves the code as it was."
        )
    began = time.process_time()
    result = function(**unit)
    return result, round(time.process_time() - began, 2)


def compute_seconds(cache: Path) -> int:
    """Return the processor time of all units in a cache, in seconds, over all sessions."""
    return round(sum(entry["seconds"] for entry in entries(cache)))


def entries(cache: Path) -> Iterable[dict]:
    """Yield what is on the lines of a file; none if there is no file."""
    for line in cache.read_text().splitlines() if cache.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the line being written when the process was stopped
            continue
