"""Stored results: JSON files with a record of how they came about."""

__all__ = [
    "PROVENANCE",
    "cache_of",
    "commit_of",
    "compute_seconds",
    "digest",
    "load_result",
    "provenance",
    "run_units",
    "save_result",
]

import ast
import hashlib
import json
import multiprocessing as mp
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import torch
from tqdm.auto import tqdm

PROVENANCE = ("command", "commit", "date", "device", "seeds", "versions", "wall_seconds")
"""What every stored result says about itself."""

LIBRARY = Path(__file__).parent.parent


def load_result(name: str) -> dict:
    """Load a result stored with the book.

    Args:
        name: the experiment's name, for example "puzzle".

    Returns:
        The stored record; ``["provenance"]`` says how it was made.

    Raises:
        FileNotFoundError: if no such result is stored.

    Example:
        >>> sorted(load_result("puzzle"))
        ['chosen', 'design', 'final', 'provenance', 'tuning']
    """
    folder = resources.files("fedlib.results")
    file = folder / f"{name}.json"
    if not file.is_file():
        names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))
        raise FileNotFoundError(
            f'Invalid name="{name}": no such stored result. Use one of {names}, or run '
            f"python -m fedlib.experiments {name}."
        )
    return json.loads(file.read_text())


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


def cache_of(output: Path, name: str, design: Mapping, *, module: str) -> Path:
    """Return an experiment's file of finished units: another for other constants or other code."""
    return output / f"{name}.{digest(design, module=module)[:8]}.partial.jsonl"


def digest(values: object, *, module: str) -> str:
    """Return hexadecimal digits that change with plain values and the code that works on them.

    The code is the library's, that of Part III's studies, and the named module's.
    """
    here = Path(__file__).parent
    files = [*here.parent.glob("*.py"), *(here / f"{n}.py" for n in {"cifar", "study", module})]
    code = [(file.name, _code(file)) for file in sorted(files)]
    return hashlib.sha256(json.dumps([code, values], sort_keys=True).encode()).hexdigest()


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
        cache: JSON-lines file of finished units.
        workers: processes; each uses one thread, so that they do not disturb one another.
        label: shown beside the progress bar.

    Returns:
        One result per unit, in order.
    """
    done = {_key(entry["unit"]): entry["result"] for entry in _entries(cache)}
    torn = cache.exists() and not f"\n{cache.read_text()}".endswith("\n")
    missing = [unit for unit in units if _key(unit) not in done]
    with (
        cache.open("a") as file,
        mp.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool,
    ):
        if torn:
            file.write("\n")
        work = pool.imap_unordered(_call, [(function, unit) for unit in missing])
        for unit, result, seconds in tqdm(work, desc=label, total=len(missing)):
            line = {"unit": unit, "result": result, "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            file.flush()
            done[_key(unit)] = result
    return [done[_key(unit)] for unit in units]


def _key(unit: dict) -> str:
    return json.dumps(unit, sort_keys=True)


def _call(task: tuple[Callable[..., dict], dict]) -> tuple[dict, dict, float]:
    function, unit = task
    began = time.process_time()
    result = function(**unit)
    return unit, result, round(time.process_time() - began, 2)


def compute_seconds(cache: Path) -> int:
    """Return the processor time of all units in a cache, in seconds, over all sessions."""
    return round(sum(entry["seconds"] for entry in _entries(cache)))


def _entries(cache: Path) -> Iterable[dict]:
    for line in cache.read_text().splitlines() if cache.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the line being written when the process was stopped
            continue
