"""Run every notebook as other machines would, and say which cells then print something else.

    python tools/shake.py                      # every setting by itself
    python tools/shake.py --combined           # settings of several libraries at once: a few runs
    python tools/shake.py --only nudge book/13_inside_the_network.ipynb

A setting that this processor cannot run is dropped, with the reason; one that changes no bit here
is run all the same, and marked.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from repository import ROOT, notebooks

LOGS = ROOT / "_build" / "shake"
NUDGE = Path(__file__).with_name("nudge.py")

# What NumPy may use beyond its baseline, by its own names: an unknown name stops its import.
EXTENSIONS = list(np._core._multiarray_umath.__cpu_dispatch__)
BEYOND_AVX2 = [name for name in EXTENSIONS if re.match("AVX512|X86_V4", name)]

SETTINGS = {
    "plain": {},
    "OpenBLAS Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "OpenBLAS Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "OpenBLAS SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "OpenBLAS Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "MKL SSE4_2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "NumPy up to AVX2": {"NPY_DISABLE_CPU_FEATURES": " ".join(BEYOND_AVX2)},
    "NumPy baseline": {"NPY_DISABLE_CPU_FEATURES": " ".join(EXTENSIONS)},
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},  # chapters share cores
    "nudge": {"FEDLIB_NUDGE": "1"},
}
# Every setting, in as few runs as can be: of OpenBLAS's processors, a run can have one.
COMBINED = {
    "oldest": ["OpenBLAS Prescott", "MKL SSE4_2", "ATen default", "NumPy baseline"],
    "nudged": ["MKL compatible", "ATen avx2", "NumPy up to AVX2", "two threads", "nudge"],
    "skylakex": ["OpenBLAS SkylakeX"],
    "haswell": ["OpenBLAS Haswell"],
    "zen": ["OpenBLAS Zen"],
}

# Bits of each library on small inputs, as one line of JSON. What cannot run ends in a signal.
PROBE = """
import hashlib, json, warnings
import numpy as np, torch
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
A, B = rng.standard_normal((2, 300, 300))
S, T = torch.from_numpy(A).float(), torch.from_numpy(B).float()
made = {
    "OpenBLAS": [A @ B, np.linalg.svd(A[:40, :30])[0], np.linalg.qr(B)[0]],
    "MKL": [S @ T, S.double() @ T.double(), torch.linalg.qr(S)[0]],
    "ATen": [torch.exp(S), S.sum(), torch.randn(64, generator=torch.Generator().manual_seed(0))],
    "NumPy": [A.sum(), np.exp(A), np.tanh(A), np.exp(A.astype("f4")), np.sin(A.astype("f4"))],
}
print(json.dumps({name: hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in xs)).hexdigest()
                  for name, xs in made.items()}))
"""


def environment(settings: Iterable[str]) -> dict[str, str]:
    """The variables under which kernels run: none of the settings' own from outside."""
    known = {name for setting in SETTINGS.values() for name in setting}
    env = {name: value for name, value in os.environ.items() if name not in known}
    env |= {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    for setting in settings:
        env |= SETTINGS[setting]
    return env


def probe(settings: Iterable[str]) -> dict[str, str] | str:
    """Digests of what each library computes under these settings, or why it cannot."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment(settings), capture_output=True, text=True
    )
    if run.returncode:
        why = (run.stderr.strip().splitlines() or [""])[-1]
        return f"ends with signal {-run.returncode}" if run.returncode < 0 else why
    return json.loads(run.stdout)


def effects(settings: Iterable[str], plain: dict[str, str]) -> dict[str, list[str]]:
    """What each setting changes here, for those that this machine can run; print it."""
    known = {}
    for name in settings:
        found = probe([name])
        if isinstance(found, str):
            print(f"  {name:18} DROPPED: this processor cannot run it ({found})")
            continue
        known[name] = [library for library in found if found[library] != plain[library]]
        if name == "nudge":
            known[name] = ["every start and every sign"]
        changed = ", ".join(known[name]) or "nothing: here it is what runs anyway"
        print(f"  {name:18} changes {changed}", flush=True)
    return known


def combined(known: dict[str, list[str]]) -> dict[str, list[str]]:
    """Runs that cover all settings between them; print each."""
    runs = {}
    for name, members in COMBINED.items():
        able = [setting for setting in members if setting in known]
        if any(known[setting] for setting in able):
            runs[name] = able
            print(f"  run {name:14} = {' + '.join(able)}")
        else:
            print(f"  run {name:14} DROPPED: nothing left that changes a bit here")
    return runs


def shake(path: Path, settings: Iterable[str], log: Path) -> tuple[list[str], float]:
    """Run one notebook under settings; return the cells that differ, and seconds."""
    start, env = time.perf_counter(), environment(settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if env.pop("FEDLIB_NUDGE", None):
            startup = Path(scratch, "profile_default", "startup")
            startup.mkdir(parents=True)
            code = NUDGE.read_text("utf-8")  # leaves no name behind among the notebook's own
            (startup / "00-nudge.py").write_text(f"exec({code!r}, {{}})", "utf-8")
            env["IPYTHONDIR"] = scratch
        report = Path(scratch, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "--color=no"]
        with log.open("w", encoding="utf-8") as file:
            subprocess.run(
                [sys.executable, "-m", "pytest", str(path), *options],
                env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if not report.exists():
            return ["all"], time.perf_counter() - start
        cells = ElementTree.parse(report).iter("testcase")
        differ = [cell for cell in cells if len(cell) and cell[0].tag in ("failure", "error")]
    return [c.get("name").rpartition(" ")[2] for c in differ], time.perf_counter() - start


def table(paths: list[Path], runs: dict[str, list[str]], jobs: int) -> bool:
    """Run everything, chapters side by side; print settings × chapters; True if all agree."""
    start, agree = time.perf_counter(), True
    short = [path.stem.partition("_")[0] for path in paths]
    print(f"{'':18}", *(f"{name:>5}" for name in short), "  seconds", flush=True)
    with ThreadPoolExecutor(jobs) as pool:

        def submit(name, path):
            log = LOGS / f"{name}-{path.stem}.log".replace(" ", "-")
            return pool.submit(shake, path, runs[name], log)

        pending = {name: [submit(name, path) for path in paths] for name in runs}
        for name, row in pending.items():
            found = [future.result() for future in row]
            cells = ["ok" if not differ else ",".join(differ) for differ, _ in found]
            agree &= not any(differ for differ, _ in found)
            seconds = sum(seconds for _, seconds in found)
            print(f"{name:18}", *(f"{cell:>5}" for cell in cells), f"{seconds:9.0f}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s in all; a number is a cell that differs,")
    print(f"and {LOGS.relative_to(ROOT)} says how.")
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of _toc.yml by default")
    parser.add_argument(
        "--combined", action="store_true", help="a few runs that cover all settings"
    )
    parser.add_argument("--only", action="append", choices=SETTINGS, help="this setting (repeat)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="chapters at a time")
    args = parser.parse_args()

    plain = probe([])
    assert isinstance(plain, dict), plain
    print("What each setting changes, by library:")
    known = effects(args.only or [name for name in SETTINGS if name != "plain"], plain)
    if args.combined:
        runs = combined(known)
    else:
        runs = {name: [name] for name in (known if args.only else ["plain", *known])}
    paths = [path.resolve() for path in args.notebooks] or notebooks()
    print()
    return 0 if table(paths, runs, args.jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
