"""``python -m fedlib.experiments NAME`` re-runs an experiment and stores its result."""

import argparse
import importlib
import os
from pathlib import Path

EXPERIMENTS = ("puzzle", "one_step", "fine_tuning", "inside", "transfer", "neighbours")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fedlib.experiments", description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--output", type=Path, default=Path("book/results"), help="a folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    experiment = importlib.import_module(f"fedlib.experiments.{arguments.name}")
    experiment.main(arguments.output, arguments.workers)
