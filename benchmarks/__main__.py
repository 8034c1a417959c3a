"""``python -m benchmarks`` times fedlib and its peers on the same work, and stores the figures."""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.profile import STRATEGIES, profile
from benchmarks.runner import CONTESTANTS, ENVIRONMENTS, Setting, run, table, versions
from benchmarks.scale import scale, text
from benchmarks.work import GROWTH, QUICK, WORKLOADS, Workload, make
from studies.record import ROOT, commit_of, provenance, save_result

_ONE_EACH = {
    ("fedlib", "auto"),
    ("fedjax", "jit"),
    ("pfl", "2 processes"),
    ("flower", "2 actors"),
    ("fedlab", "serial"),
}
GROWING = [setting for setting in CONTESTANTS if (setting.name, setting.key) in _ONE_EACH]
"""Who takes part in the growth sweeps, beside the baseline: everybody once, in a good setting."""
MORE = ["growth", "profile", "scale"]


def main() -> None:
    """Parse the command line, run everything, print tables, write the result."""
    names = list(dict.fromkeys(setting.name for setting in CONTESTANTS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny work, to see that all runs")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--work", nargs="+", choices=[*WORKLOADS, *MORE], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3, help="processes per setting")
    parser.add_argument("--output", type=Path, default=Path("book/results/benchmarks.json"))
    options = parser.parse_args()
    works = options.work or [*WORKLOADS, *(MORE[1:] if options.quick else MORE)]
    began, commit = time.monotonic(), commit_of(ROOT / "fedlib")

    settings = [setting for setting in CONTESTANTS if setting.name in options.only]
    record = {
        "machine": machine(quick=options.quick),
        "peers": {name: versions(name) for name in options.only if versions(name)},
        "work": {},
        "growth": {},
        "profile": {},
        "scale": {},
    }
    tasks = QUICK if options.quick else WORKLOADS
    for name in works:
        if name in tasks:
            print(f"\n{name}", flush=True)
            enough = dict(rounds=2, seconds=0) if options.quick else dict(rounds=5, seconds=2)
            record["work"][name] = contest(tasks[name], settings, repeats=options.repeats, **enough)
    if "growth" in works:
        growing = [setting for setting in settings if setting in GROWING]
        for name, sweep in GROWTH.items():
            record["growth"][name] = {}
            for number, work in sweep.items():
                print(f"\n{name} = {number}", flush=True)
                figures = contest(work, growing, repeats=1, rounds=3, seconds=0.5)
                record["growth"][name][str(number)] = figures
    if "profile" in works:
        print("\nprofile", flush=True)
        for name, strategy in STRATEGIES.items():
            figures = profile(tasks[name], strategy, repeats=2 if options.quick else 5)
            record["profile"][name] = figures
            parts = [f"{part} {s:.4f}" for part, s in figures["categories"].items()]
            print(f"{name}: {figures['seconds']:.4f} s/round = {' + '.join(parts)}", flush=True)
    if "scale" in works:
        print("\nscale", flush=True)
        enough = dict(rounds=2, repeats=1) if options.quick else dict(rounds=5, repeats=2)
        try:
            record["scale"] = scale(quick=options.quick, **enough)
            print(text(record["scale"]), flush=True)
        except RuntimeError as error:
            record["scale"] = {"failed": str(error)}
            print(error, flush=True)

    wall_seconds = time.monotonic() - began
    how = dict(seeds=[0], wall_seconds=wall_seconds, commit=commit)
    record["provenance"] = provenance("python -m benchmarks", **how)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_result(options.output, record)


def contest(work: Workload, settings: list[Setting], **options: float) -> dict[str, dict]:
    """Make the work, run it, print the table; return the figures."""
    with tempfile.TemporaryDirectory(dir=_made(ENVIRONMENTS)) as folder:
        path = Path(folder) / "work.npz"
        make(work, path)
        figures = run(path, settings, **options)
    print(table(figures), flush=True)
    return figures


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
