"""``python -m studies NAME ...`` runs a study; ``python -m studies NAME --help`` says how.

A study is a file here with a function ``compute(output, workers)``; or ``main(arguments)``, if it
takes arguments of its own.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from studies.record import ROOT

IS_STUDY = re.compile(r"^def (compute|main)\(", re.MULTILINE)
STUDIES = sorted(
    f.stem for f in Path(__file__).parent.glob("[a-z]*.py") if IS_STUDY.search(f.read_text())
)


def run_table(compute: Callable[[Path, int], None], name: str, arguments: Sequence[str]) -> None:
    """Compute a study's table."""
    parser = argparse.ArgumentParser(prog=f"python -m studies {name}", description=compute.__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "book" / "results", help="a folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    compute(options.output, options.workers)


def main(name: str = "", *arguments: str) -> None:
    """Run a study by its name."""
    if name not in STUDIES:
        sys.exit(f"usage: python -m studies NAME [--help]\nNAME is one of: {', '.join(STUDIES)}")
    study = importlib.import_module(f"studies.{name}")
    if hasattr(study, "main"):
        study.main(arguments)
    else:
        run_table(study.compute, name, arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
