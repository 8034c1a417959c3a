"""How much of Chapter 12's comparison is the fine-tuning's: the same bodies, fine-tuned harder.

Fine-tuning a head by SGD stops early, which costs most where features are small. Here heads are
taken to their optimum (regularised logistic regression on standardised features), and all layers
get as many steps as training from scratch. Constants are chosen on validation clients, bodies and
their step sizes come from ``one_step.json``.
"""

__all__ = ["SETTINGS", "compute"]

import time
from pathlib import Path

from fedlib.represent import linear_probe
from fedlib.stored import CENTRALISED, UNTRAINED
from studies import federations
from studies.federations import Task, adapt_all, featured, new_clients
from studies.one_step import STUDY, chosen_lrs
from studies.record import commit_of, provenance, save_result
from studies.runner import Runner
from studies.tuning import (
    ALL_LRS,
    BUDGET,
    SCRATCH,
    TUNING_SEED,
    choose,
    only,
    rounded_mean,
    trained,
)

SETTINGS = [
    *(
        setting
        for setting in STUDY.settings[: STUDY.core]
        if setting["matching"] == "steps" and setting["federation"][1] != 80
    ),
    UNTRAINED,
    CENTRALISED,
]
STRENGTHS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
"""The probe's ``C``: the weight of the data against the penalty."""

SEEDS = (0, 1, 2, 3, 4)


def probe(task: Task, C: float) -> list[float]:
    """Return the accuracy of every client's best head."""
    return [linear_probe(*task.train[i], *task.test[i], C=C) for i in range(task.train.num_clients)]


def tune(setting: dict, client_lr: float | None) -> dict:
    """Score strengths and step sizes on validation clients: ``{part: {budget: {value: a}}}``."""
    params, _ = trained(setting, client_lr, TUNING_SEED)
    task = new_clients("validation", TUNING_SEED)
    features = Task(*(featured(params, half) for half in task))
    tried = {}
    for budget in federations.BUDGETS:
        smaller = features.with_budget(budget)
        tried[str(budget)] = {str(C): rounded_mean(probe(smaller, C)) for C in STRENGTHS}
    lrs = {BUDGET: ALL_LRS}
    few = adapt_all(params, task.of_first(5), lrs, TUNING_SEED, fine_tuning=SCRATCH)[BUDGET]
    return {
        "probe": tried,
        "all": {str(BUDGET): {str(lr): rounded_mean(a) for lr, a in few.items()}},
    }


def final(setting: dict, client_lr: float | None, chosen: dict, seed: int) -> dict:
    """Score new clients of every kind with the chosen constants."""
    params, _ = trained(setting, client_lr, seed)
    result = {"probe": {}, "all": {}}
    for kind in federations.KINDS:
        task = new_clients(kind, seed)
        features = Task(*(featured(params, half) for half in task))
        result["probe"][kind] = {
            budget: [round(a, 3) for a in probe(features.with_budget(int(budget)), C)]
            for budget, C in chosen["probe"].items()
        }
        lr = chosen["all"][str(BUDGET)]
        scores = adapt_all(params, task.of_first(5), {BUDGET: [lr]}, seed, fine_tuning=SCRATCH)
        result["all"][kind] = {str(BUDGET): only(scores[BUDGET])}
    return result


def compute(output: Path, workers: int) -> None:
    """Tune, score, and store everything in ``output/fine_tuning.json``."""
    began, commit = time.monotonic(), commit_of()
    units = [
        dict(setting=setting, client_lr=lr)
        for setting, lr in zip(SETTINGS, chosen_lrs(output, SETTINGS), strict=True)
    ]
    design = {"strengths": STRENGTHS, "all_lrs": ALL_LRS, "all": federations.ALL | SCRATCH}
    run = Runner(
        output / "fine_tuning.partial.jsonl",
        workers,
        {"tune": len(units), "final": len(units) * len(SEEDS)},
    )
    chosen = []
    for unit, tried in zip(units, run(tune, units, label="tuning"), strict=True):
        best = {
            part: {budget: float(choose(scores)[0]) for budget, scores in by_budget.items()}
            for part, by_budget in tried.items()
        }
        chosen.append(unit | {"tried": tried, "lrs": best})
    finals = [
        dict(setting=e["setting"], client_lr=e["client_lr"], chosen=e["lrs"], seed=seed)
        for seed in SEEDS
        for e in chosen
    ]
    results = run(final, finals, label="final")
    record = {
        "design": design,
        "chosen": chosen,
        "final": [
            {"setting": unit["setting"], "seed": unit["seed"]} | result
            for unit, result in zip(finals, results, strict=True)
        ],
        "provenance": provenance(
            "python -m studies fine_tuning",
            seeds=[TUNING_SEED, *SEEDS],
            wall_seconds=time.monotonic() - began,
            commit=commit,
        )
        | {"compute_seconds": run.seconds},
    }
    save_result(output / "fine_tuning.json", record)
