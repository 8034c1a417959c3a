"""What a study writes: a JSON file with a record of how it came about."""

__all__ = ["ROOT", "commit_of", "entries", "provenance", "save_result"]

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

CODE = (ROOT / "fedlib", ROOT / "studies")


def save_result(path: Path, record: Mapping) -> None:
    """Write a result, sorted, an entry or list of numbers a line: a re-run is a small diff."""
    text = json.dumps(record, indent=1, sort_keys=True)
    text = re.sub(r"\[[-+0-9.eE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def commit_of(*folders: Path) -> str:
    """Name the commit that folders, by default the code's, are at; "-dirty" if they differ from it.

    What changed elsewhere in the repository, such as the result just written, does not matter.
    To be asked when a study starts: later, files may have changed that it did not run.
    """
    folders = folders or CODE
    git = ["git", "-C", str(folders[0])]
    try:
        commit, changes = (
            subprocess.run([*git, *asked], capture_output=True, text=True, check=True).stdout
            for asked in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--", *map(str, folders)],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not run from a git checkout)"
    return commit.strip() + ("-dirty" if changes else "")


def provenance(command: str, *, seeds: Iterable[int], wall_seconds: float, commit: str) -> dict:
    """Say how a result came about: command, commit, date, device, seeds, versions, wall time.

    Of a run that was stopped and went on, commit, date and wall time are those of the last session.
    """
    return {
        "command": command,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "seeds": list(seeds),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "numpy", "matplotlib")},
        "wall_seconds": max(1, round(wall_seconds)),
    }


def entries(file: Path) -> Iterator[dict]:
    """Yield what is on the lines of a file; none if there is no file."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the line being written when the process was stopped
            continue
