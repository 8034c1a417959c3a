"""The experiment of Chapter 12: FedAvg against its one-step baseline on CIFAR.

For every federation, FedAvg with 1, 2, 5, 10 and 50 local steps is trained with as many rounds, and
with as many gradient steps; one local step is D-SGD. Each has its own step size, chosen on
validation clients. New clients then fine-tune the head alone, or all layers.
"""

__all__ = ["CENTRALISED", "FEDERATIONS", "STUDY", "UNTRAINED", "chosen_lrs", "main"]

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fedlib.stored import CENTRALISED, UNTRAINED
from studies import comparison
from studies.federations import Federation
from studies.record import ROOT
from studies.tuning import STEP_SIZES, TuningStudy, around, mean_head

FEDERATIONS = [
    Federation(regime, classes) for classes in (5, 20, 80) for regime in ("shared", "private")
]
MIDDLES = {
    "steps": {1: 0.2, 2: 0.2, 5: 0.1, 10: 0.1, 50: 0.05},
    "rounds": {1: 0.8, 2: 0.4, 5: 0.2, 10: 0.2},
}
WIDE = [lr for lr in STEP_SIZES if 0.0125 <= lr <= 1.6]
"""Where training is short and the best step size hard to guess, all of these are tried."""

GRID = [
    dict(federation=list(federation), local_steps=tau, matching=matching)
    for matching in MIDDLES
    for tau in MIDDLES[matching]
    for federation in FEDERATIONS
]
ENDS = (1, 50)
GRID.sort(key=lambda setting: setting["local_steps"] not in ENDS)  # the two ends first
CORE = sum(setting["local_steps"] in ENDS for setting in GRID)


def _start(setting: dict) -> list[float]:
    matching, local_steps = setting["matching"], setting["local_steps"]
    short = matching == "rounds" and local_steps <= 2
    return WIDE if short else around(MIDDLES[matching][local_steps])


def _mean_heads(chosen: list[dict], seeds: list[int], run: Callable[..., list[dict]]) -> dict:
    """Return the spectra of all federations' mean heads, on the centralised body."""
    client_lr = next(e["client_lr"] for e in chosen if e["setting"] == CENTRALISED)
    body = dict(setting=CENTRALISED, client_lr=client_lr)
    units = [
        dict(federation=list(federation), seed=seed) for federation in FEDERATIONS for seed in seeds
    ]
    results = run(mean_head, [body | unit for unit in units], label="mean heads")
    return {"mean_head": [u | r for u, r in zip(units, results, strict=True)]}


STUDY = TuningStudy(
    name="one_step",
    settings=[UNTRAINED, CENTRALISED, *GRID],
    starts=[None, around(0.1), *map(_start, GRID)],
    core=2 + CORE,
    seeds=(0, 1, 2, 3, 4),
    parts=("head", "all"),
    curves=True,
    further=_mean_heads,
)


def chosen_lrs(output: Path, settings: Iterable[dict]) -> list[float | None]:
    """Return the client step sizes that this experiment chose for some of its settings.

    Args:
        output: the folder of its stored table.
        settings: as in ``STUDY``.

    Raises:
        FileNotFoundError: if it was not run, or not for all of them.
    """
    file = output / "one_step.json"
    stored = json.loads(file.read_text())["chosen"] if file.exists() else []
    chosen = [[e["client_lr"] for e in stored if e["setting"] == each] for each in settings]
    if not all(chosen):
        raise FileNotFoundError(
            f"Invalid output={output}: its one_step.json is missing or lacks settings. "
            "Run python -m studies one_step first."
        )
    return [client_lr for (client_lr,) in chosen]


def main(arguments: Sequence[str]) -> None:
    """Compute Chapter 12's table; or, with any of the arguments below, a comparison of your own."""
    parser = argparse.ArgumentParser(prog="python -m studies one_step", description=main.__doc__)
    parser.add_argument("--output", type=Path, help="a folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    comparison.add_arguments(parser)
    options = parser.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value is not None}
    own = bool(given - {"output", "workers"})
    study, folder = STUDY, ROOT / "book" / "results"
    if own:
        try:
            study, folder = comparison.study_of(options, list(arguments)), comparison.FOLDER
        except ValueError as error:
            parser.exit(2, f"{error}\n")
    output = options.output or folder
    output.mkdir(parents=True, exist_ok=True)
    file = study.run(output, options.workers)
    if own:
        comparison.show(study, file)
