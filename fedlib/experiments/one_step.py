"""The experiment of Chapter 12: FedAvg against its one-step baseline on CIFAR.

For every federation, FedAvg with 1, 2, 5, 10 and 50 local steps is trained with as many rounds, and
with as many gradient steps; one local step is D-SGD. Each has its own step size, chosen on
validation clients. New clients then fine-tune the head alone, or all layers.
"""

__all__ = ["CENTRALISED", "FEDERATIONS", "STUDY", "UNTRAINED", "chosen_lrs", "main"]

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from fedlib.experiments.cifar import Federation
from fedlib.experiments.study import STEP_SIZES, Study, around, mean_head

FEDERATIONS = [
    Federation(regime, classes) for classes in (5, 20, 80) for regime in ("shared", "private")
]
MIDDLES = {
    "steps": {1: 0.2, 2: 0.2, 5: 0.1, 10: 0.1, 50: 0.05},
    "rounds": {1: 0.8, 2: 0.4, 5: 0.2, 10: 0.2},
}
WIDE = [lr for lr in STEP_SIZES if 0.0125 <= lr <= 1.6]
"""Where training is short and the best step size hard to guess, all of these are tried."""

UNTRAINED = dict(federation=["untrained", 80, 1, 0.0], local_steps=1, matching="steps")
CENTRALISED = dict(federation=["pooled", 80, 1, 0.0], local_steps=50, matching="steps")
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


STUDY = Study(
    name="one_step",
    settings=[UNTRAINED, CENTRALISED, *GRID],
    starts=[None, around(0.1), *map(_start, GRID)],
    core=2 + CORE,
    seeds=(0, 1, 2, 3, 4),
    parts=("head", "all"),
    curves=True,
    more=_mean_heads,
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
            "Run python -m fedlib.experiments one_step first."
        )
    return [client_lr for (client_lr,) in chosen]


def main(output: Path, workers: int) -> None:
    """Compute the table and store it as ``output/one_step.json``."""
    STUDY.run(output, workers)
