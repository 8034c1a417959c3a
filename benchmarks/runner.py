"""Running contestants: environments, processes, user code, and what the repeats amount to."""

__all__ = [
    "BASELINE",
    "CONTESTANTS",
    "Setting",
    "execute",
    "lines_of_user_code",
    "python_of",
    "run",
    "table",
    "versions",
]

import ast
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.work import loss_on

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / "_build" / "benchmarks"
FOLDER = Path(__file__).parent / "contestants"
MARKERS = "# --- user code ---", "# --- end of user code ---"
LOSS_TOLERANCE = 1e-3
UPDATE_TOLERANCE = 3e-2
"""Relative differences from the baseline that pass. Rounding makes 3e-5 of the update, but now and
then takes clients across a kink of ReLU or pooling, and that has made 1.5e-2."""
TIMEOUT = 120
"""Seconds that a process may take."""


class Setting(NamedTuple):
    """One way to run one contestant.

    Attributes:
        name: the contestant's file.
        key: what the file is told.
        threads: OMP_NUM_THREADS.
    """

    name: str
    key: str
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.name} {self.key}, {self.threads} thread{'s' * (self.threads > 1)}"


BASELINE = Setting("plain", "loop", 1)
"""Always runs: the others are compared with it."""

CONTESTANTS = [
    BASELINE,
    Setting("plain", "loop", 2),
    Setting("fedlib", "auto", 2),
    Setting("fedlib", "loop", 1),
    Setting("fedlib", "threads", 2),
    Setting("fedlib", "stacked", 2),
    Setting("fedlib", "compiled", 2),
    # JAX has threads of its own, as many as cores, and none of OMP's.
    Setting("fedjax", "jit", 2),
    Setting("fedjax", "pmap", 2),
    Setting("pfl", "1 process"),
    Setting("pfl", "2 processes"),
    Setting("flower", "2 actors"),
    Setting("fedlab", "serial"),
]
"""In the order of their turns. fedlib and plain run in this interpreter, others in their own."""


def lines_of_user_code(file: Path) -> int:
    """Count the lines between the markers that are neither blank, comment nor docstring."""
    source = file.read_text()
    numbered = source.splitlines()
    first, last = (numbered.index(marker) + 1 for marker in MARKERS)
    skipped = {tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(first < line < last for line in lines)


def python_of(name: str, *, requirements: Path, environments: Path = ENVIRONMENTS) -> str:
    """Return the interpreter of a contestant; make its environment if it is missing or outdated.

    Raises:
        RuntimeError: if it does not install; says why.
    """
    wanted = (requirements / f"{name}.txt").read_text()
    if name in ("fedlib", "plain"):
        return sys.executable
    folder = environments / name
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"==> Installing {name} into {folder.name}", flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", "-r", requirements / f"{name}.txt"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"does not install: {_last_line(done.stderr)}")
        stamp.write_text(wanted)
    return str(python)


def versions(name: str, *, requirements: Path = FOLDER.parent / "requirements") -> dict[str, str]:
    """Return what a contestant pins itself, without what that brings."""
    own = (requirements / f"{name}.txt").read_text().split("# what these bring")[0]
    return dict(line.split("==") for line in own.splitlines() if "==" in line)


def run(
    work: Path,
    settings: Iterable[Setting],
    *,
    repeats: int,
    rounds: int,
    seconds: float,
    folder: Path = FOLDER,
    environments: Path = ENVIRONMENTS,
) -> dict[str, dict]:
    """Run every setting on one workload, in turns, and compare them.

    Turns, so that a drift of the machine's load meets all alike; one process at a time.

    Args:
        work: a file from ``benchmarks.work.make``; reports are written beside it.
        settings: who takes part; ``BASELINE`` comes first, always.
        repeats: turns.
        rounds: rounds that a process times, at least.
        seconds: for so long it times more.
        folder: the contestants' files, with ``../requirements`` beside it.
        environments: where their environments are made.

    Returns:
        By setting: the figures, or ``{"failed": reason}``.
    """
    settings = list(dict.fromkeys([BASELINE, *settings]))
    failed, reports = {}, {setting: [] for setting in settings}
    for _ in range(repeats):
        for setting in settings:
            if setting in failed:
                continue
            try:
                requirements = folder.parent / "requirements"
                python = python_of(
                    setting.name, requirements=requirements, environments=environments
                )
                output = work.with_name(f"{work.stem}.{len(reports[setting])}.json")
                reports[setting].append(
                    _process(python, folder, work, output, setting, rounds, seconds)
                )
            except RuntimeError as error:
                failed[setting] = str(error)
    return _figures(work, folder, reports, failed)


def _process(
    python: str,
    folder: Path,
    work: Path,
    output: Path,
    setting: Setting,
    rounds: int,
    seconds: float,
) -> dict:
    """Run one contestant once; return its report, with its parameters."""
    # -P: contestants are named as what they import, and must not import themselves.
    command = [python, "-P", folder / f"{setting.name}.py", work, output]
    command += ["--setting", setting.key, "--rounds", str(rounds), "--seconds", str(seconds)]
    output.with_suffix(".npz").unlink(missing_ok=True)
    report = execute(command, output, threads=setting.threads)
    with np.load(output.with_suffix(".npz")) as params:
        report["params"] = dict(params)
    return report


def execute(command: list, output: Path, *, threads: int) -> dict:
    """Run a command that writes a report, and end all that it started.

    Args:
        command: what to run.
        output: the report, in JSON; what the command prints goes beside it.
        threads: OMP_NUM_THREADS.

    Returns:
        The report.

    Raises:
        RuntimeError: if the command crashes, takes too long, or writes no report; says which.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    output.unlink(missing_ok=True)
    log = output.with_suffix(".log")
    with log.open("w") as stream:  # a file, since a daemon left behind would hold a pipe open
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took more than {TIMEOUT} s") from None
        finally:
            _end(process)
    if code or not output.exists():
        raise RuntimeError(f"crashed: {_last_line(log.read_text())}")
    return json.loads(output.read_text())


def _end(process: subprocess.Popen) -> None:
    """End what a contestant started and left behind: all that is in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no output"


def _figures(
    work: Path, folder: Path, reports: Mapping[Setting, list[dict]], failed: dict[Setting, str]
) -> dict[str, dict]:
    loss = loss_on(work)
    with np.load(work) as file:
        start = {k.removeprefix("start/"): file[k] for k in file if k.startswith("start/")}
    if BASELINE in failed:
        raise RuntimeError(f"{BASELINE} {failed[BASELINE]}")
    expected = reports[BASELINE][0]["params"]
    figures = {}
    for setting, runs in reports.items():
        if setting not in failed:
            difference = _differences(expected, runs[0]["params"], start, loss)
            if not difference["loss"] <= LOSS_TOLERANCE or not (
                difference["update"] <= UPDATE_TOLERANCE
            ):
                failed[setting] = "disagrees after two rounds: relative difference of the loss " + (
                    "{loss:.1e}, of the update {update:.1e}".format(**difference)
                )
        if setting in failed:
            figures[str(setting)] = {"failed": failed[setting]}
            continue
        times = [float(np.median(report["round_seconds"])) for report in runs]
        middle = {
            name: float(np.median([report[name] for report in runs]))
            for name in ("cpu_seconds", "peak_megabytes", "first_round_seconds")
        }
        figures[str(setting)] = middle | {
            "seconds": float(np.median(times)),
            "seconds_range": [min(times), max(times)],
            "rounds": sum(len(report["round_seconds"]) for report in runs),
            "lines": lines_of_user_code(folder / f"{setting.name}.py"),
            "difference": difference,
        }
    _ratios(figures)
    return figures


def _differences(expected: dict, params: dict, start: dict, loss) -> dict[str, float]:
    """Compare parameters after two rounds with the baseline's.

    The difference is measured against how far two rounds go: against the size of the parameters
    themselves, one who did nothing might pass.
    """
    if params.keys() != expected.keys():
        return {"loss": math.inf, "update": math.inf}

    def distance(a: dict, b: dict) -> float:
        return math.sqrt(sum(float(np.square(a[n] - b[n], dtype=float).sum()) for n in expected))

    mine, theirs = loss(params), loss(expected)
    return {
        "loss": abs(mine - theirs) / abs(theirs),
        "update": distance(params, expected) / distance(start, expected),
    }


def _ratios(figures: dict[str, dict]) -> None:
    """Add how many times as fast as the plain loop and the best of the others each is."""
    seconds = {name: f["seconds"] for name, f in figures.items() if "failed" not in f}
    plain = {name: s for name, s in seconds.items() if name.startswith("plain ")}
    peers = {n: s for n, s in seconds.items() if not n.startswith(("plain ", "fedlib "))}
    against = {"best plain": min(plain, key=plain.get)}
    if "plain loop, 2 threads" in plain:
        against["plain, 2 threads"] = "plain loop, 2 threads"
    if peers:
        against["best peer"] = min(peers, key=peers.get)
    for name, s in seconds.items():
        figures[name]["times_as_fast_as"] = {
            label: round(seconds[other] / s, 3) for label, other in against.items()
        }


def table(figures: Mapping[str, dict]) -> str:
    """Return the figures of one workload as text."""
    form = "{:28} {:>10} {:>19} {:>9} {:>9} {:>8} {:>6} {:>8} {:>8}"
    head = ("", "s/round", "min–max", "CPU s", "peak MB", "first s", "lines", "× plain", "× peer")
    lines = [form.format(*head)]
    for name, f in sorted(figures.items(), key=lambda item: item[1].get("seconds", math.inf)):
        if "failed" in f:
            lines.append(f"{name:28} {f['failed']}")
            continue
        ratios = f["times_as_fast_as"]
        lines.append(
            form.format(
                name,
                f"{f['seconds']:.4f}",
                "{:.4f}–{:.4f}".format(*f["seconds_range"]),
                f"{f['cpu_seconds']:.4f}",
                f"{f['peak_megabytes']:.0f}",
                f"{f['first_round_seconds']:.1f}",
                f["lines"],
                f"{ratios['best plain']:.2f}",
                f"{ratios['best peer']:.2f}" if "best peer" in ratios else "",
            )
        )
    return "\n".join(lines)
