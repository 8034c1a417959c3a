"""Chapter 3: FedAvg against one local step on glyphs, then new clients with new classes.

Training clients hold four letter classes each. Step sizes are chosen on validation clients, whose
classes are symbols; what is reported comes from new clients, whose classes are digits. Clients and
training are ``fedlib/puzzle.py``, which Chapter 3 uses live.
"""

__all__ = [
    "FINAL_SEEDS",
    "FINE_TUNING_LRS",
    "GRID",
    "TUNING_SEEDS",
    "choose",
    "compute",
    "final",
    "tune",
]

import time
from pathlib import Path

import numpy as np

from fedlib.models import Params
from fedlib.puzzle import (
    DIGITS,
    FINE_TUNING,
    METHODS,
    PARTS,
    REGIMES,
    SYMBOLS,
    new_clients,
    score,
    train,
)
from studies.record import commit_of, provenance, save_result
from studies.runner import Runner

GRID = {
    "random": [None],
    "fedavg": [0.05, 0.1, 0.2, 0.5],
    "one_step_same_rounds": [0.2, 0.5, 1.0, 2.0],
    "one_step_same_steps": [0.1, 0.2, 0.5, 1.0, 2.0],
}
"""Client step sizes tried for each method; "random" is an untrained body."""

FINE_TUNING_LRS = {
    "head": [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0],
    "all": [0.05, 0.1, 0.2, 0.5],
}
"""Fine-tuning step sizes tried for each part."""

TUNING_SEEDS, FINAL_SEEDS = range(100, 103), range(10)


def tune(regime: str, method: str, client_lr: float | None, seed: int) -> dict:
    """Train with one step size, and score all fine-tuning step sizes on validation clients.

    Returns ``{part: {fine-tuning step size: accuracy}}``, null where training diverged.
    """
    validation = tuple(half.select(range(8)) for half in new_clients(SYMBOLS, seed))
    try:
        params = train(regime, method, client_lr, seed).params
    except FloatingPointError:
        return {part: dict.fromkeys(map(str, lrs)) for part, lrs in FINE_TUNING_LRS.items()}
    return {
        part: {
            str(lr): _finite(score, params, validation, lr=lr, part=part, seed=seed) for lr in lrs
        }
        for part, lrs in FINE_TUNING_LRS.items()
    }


def _finite(function, *args, **kwargs) -> float | None:
    try:
        return function(*args, **kwargs)
    except FloatingPointError:
        return None


def choose(results: list[tuple[dict, dict]]) -> dict:
    """Return, for each part, the pair of step sizes with the best mean over the tuning seeds.

    Raises:
        ValueError: if every pair diverged for one seed at least.
    """
    chosen = {}
    for part in PARTS:
        means = {}
        for unit, result in results:
            for lr, accuracy in result[part].items():
                means.setdefault((unit["client_lr"], float(lr)), []).append(accuracy)
        finite = {pair: float(np.mean(a)) for pair, a in means.items() if None not in a}
        if not finite:
            tried = sorted({str(client_lr) for client_lr, _ in means})
            raise ValueError(
                f"Invalid results: with every client_lr ({', '.join(tried)}) training or "
                f'fine-tuning of "{part}" diverged for some seed. Add smaller step sizes to GRID '
                "or FINE_TUNING_LRS."
            )
        client_lr, lr = max(finite, key=finite.get)
        chosen[part] = {"client_lr": client_lr, "lr": lr, "accuracy": finite[client_lr, lr]}
    return chosen


def final(regime: str, method: str, chosen: dict, seed: int) -> dict:
    """Train with the chosen step sizes and score on new clients; the head along the way too."""
    clients, trained, result = new_clients(DIGITS, seed), {}, {}

    def along(params: Params) -> dict[str, float]:
        return {"accuracy": score(params, clients, lr=chosen["head"]["lr"], part="head", seed=seed)}

    for part in PARTS:
        client_lr, lr = chosen[part]["client_lr"], chosen[part]["lr"]
        if client_lr not in trained:
            options = {}
            if part == "head" and client_lr is not None:
                options = dict(metrics=along, eval_every=METHODS[method]["num_rounds"] // 5)
            trained[client_lr] = train(regime, method, client_lr, seed, **options)
        params, history = trained[client_lr]
        result[part] = score(params, clients, lr=lr, part=part, seed=seed)
        if part == "head" and history is not None:
            result["rounds"] = history.round_num.tolist()
            result["curve"] = history["accuracy"].tolist()
    return result


def compute(output: Path, workers: int) -> None:
    """Tune, choose, run the final seeds, and store everything in ``output/puzzle.json``."""
    began, commit = time.monotonic(), commit_of()
    design = {
        "methods": METHODS,
        "fine_tuning": FINE_TUNING,
        "grid": GRID,
        "fine_tuning_lrs": FINE_TUNING_LRS,
    }
    pairs = [(regime, method) for regime in REGIMES for method in GRID]
    units = [
        dict(regime=regime, method=method, client_lr=client_lr, seed=seed)
        for regime, method in pairs
        for client_lr in GRID[method]
        for seed in TUNING_SEEDS
    ]
    planned = {"tune": len(units), "final": len(pairs) * len(FINAL_SEEDS)}
    run = Runner(output / "puzzle.partial.jsonl", workers, planned)
    tuning = run(tune, units, label="tuning")
    chosen = {}
    for pair in pairs:
        scored = zip(units, tuning, strict=True)
        chosen[pair] = choose([(u, r) for u, r in scored if (u["regime"], u["method"]) == pair])
    finals = [
        dict(regime=regime, method=method, chosen=chosen[regime, method], seed=seed)
        for regime, method in pairs
        for seed in FINAL_SEEDS
    ]
    results = run(final, finals, label="final")
    record = {
        "design": design,
        "tuning": [unit | {"accuracy": r} for unit, r in zip(units, tuning, strict=True)],
        "final": [
            {"regime": u["regime"], "method": u["method"], "seed": u["seed"]} | r
            for u, r in zip(finals, results, strict=True)
        ],
        "chosen": {regime: {m: chosen[regime, m] for m in GRID} for regime in REGIMES},
        "provenance": provenance(
            "python -m studies puzzle",
            seeds=[*TUNING_SEEDS, *FINAL_SEEDS],
            wall_seconds=time.monotonic() - began,
            commit=commit,
        ),
    }
    save_result(output / "puzzle.json", record)
    run.cache.unlink()
