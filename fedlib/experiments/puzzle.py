"""Chapter 3: FedAvg against one local step on glyphs, then new clients with new classes.

Training clients hold four letter classes each. Step sizes are chosen on validation clients, whose
classes are symbols; what is reported comes from new clients, whose classes are digits.
"""

__all__ = ["FINE_TUNING_LRS", "GRID", "METHODS", "REGIMES", "main", "new_clients", "score", "train"]

import string
import time
from pathlib import Path

import numpy as np

from fedlib.clients import ClientData
from fedlib.evaluate import evaluate
from fedlib.experiments.store import cache_of, commit_of, provenance, run_units, save_result
from fedlib.fedavg import FedAvgConfig, FedAvgResult, run_fedavg
from fedlib.finetune import fine_tune
from fedlib.glyphs import load_glyphs
from fedlib.models import CNN, Params, params_of, with_body
from fedlib.partition import partition_by_class, partition_iid, private_labels

SHAPE = (1, 16, 16)
CLASSES_PER_CLIENT = 4
REGIMES = ("shared", "private", "balanced")
"""One label space for all; or every client calls its classes 0..3, in an order drawn for it alone;
or in orders that balance: each letter is called 0, 1, 2 and 3 equally often."""

PARTS = ("head", "all")
"""What a new client fine-tunes."""

METHODS = {
    "fedavg": dict(num_rounds=40, local_steps=20),
    "one_step_same_rounds": dict(num_rounds=40, local_steps=1),
    "one_step_same_steps": dict(num_rounds=800, local_steps=1),
}
"""FedAvg, and the one-step baseline with as many rounds and with as many gradient steps."""

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

FINE_TUNING = dict(steps=160, batch_size=10)
SYMBOLS, DIGITS = "#$%&*+=?@<", string.digits
TUNING_SEEDS, FINAL_SEEDS = range(100, 103), range(10)


def train_clients(regime: str, seed: int) -> ClientData:
    """Return 52 clients with 100 images each, of four letters; each letter is held by four."""
    letters = load_glyphs(string.ascii_letters, per_class=100, seed=seed)
    rng = np.random.default_rng(seed)
    parts = partition_by_class(
        letters.labels,
        num_clients=52,
        classes_per_client=CLASSES_PER_CLIENT,
        examples_per_client=100,
        rng=rng,
    )
    labels = letters.labels
    if regime != "shared":
        labels = private_labels(labels, parts, rng=rng, balanced=regime == "balanced")
    return ClientData.from_parts(letters.images, labels, parts)


def new_clients(characters: str, seed: int) -> tuple[ClientData, ClientData]:
    """Return 20 clients, each with 80 images of ten new classes to learn from and 120 for test."""
    images = load_glyphs(characters, per_class=400, seed=seed + 1000)
    rng = np.random.default_rng(seed)
    parts = partition_iid(images.labels, num_clients=20, rng=rng)
    return ClientData.from_parts(images.images, images.labels, parts).split(0.4, rng=rng)


def model_for(regime: str, seed: int) -> CNN:
    """Return the network that is trained: as many outputs as there are labels."""
    outputs = len(string.ascii_letters) if regime == "shared" else CLASSES_PER_CLIENT
    return CNN(SHAPE, outputs, seed=seed)


def train(regime: str, method: str, client_lr: float | None, seed: int, **options) -> FedAvgResult:
    """Train one model, or none if ``client_lr`` is None; ``options`` go to ``run_fedavg``."""
    model = model_for(regime, seed)
    if client_lr is None:
        return FedAvgResult(params_of(model), None)
    config = FedAvgConfig(cohort_size=10, batch_size=10, client_lr=client_lr, **METHODS[method])
    clients = train_clients(regime, seed)
    return run_fedavg(model, clients, config, seed=seed, progress=False, **options)


def score(
    params: Params,
    clients: tuple[ClientData, ClientData],
    *,
    lr: float,
    part: str,
    seed: int,
) -> float:
    """Return the mean accuracy over new clients after fine-tuning from a body and a fresh head."""
    train_half, test_half = clients
    model = CNN(SHAPE, len(DIGITS), seed=seed)
    start = with_body(model, params)
    personal = fine_tune(model, start, train_half, lr=lr, part=part, seed=seed, **FINE_TUNING)
    return float(evaluate(model, personal, test_half).mean())


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


def main(output: Path, workers: int) -> None:
    """Tune, choose, run the final seeds, and store everything in ``output/puzzle.json``."""
    began, commit = time.monotonic(), commit_of()
    design = {
        "methods": METHODS,
        "fine_tuning": FINE_TUNING,
        "grid": GRID,
        "fine_tuning_lrs": FINE_TUNING_LRS,
    }
    pairs = [(regime, method) for regime in REGIMES for method in GRID]
    run = dict(cache=cache_of(output, "puzzle", design, file=__file__), workers=workers)
    units = [
        dict(regime=regime, method=method, client_lr=client_lr, seed=seed)
        for regime, method in pairs
        for client_lr in GRID[method]
        for seed in TUNING_SEEDS
    ]
    tuning = run_units(tune, units, label="tuning", **run)
    chosen = {}
    for pair in pairs:
        mine = zip(units, tuning, strict=True)
        chosen[pair] = choose([(u, r) for u, r in mine if (u["regime"], u["method"]) == pair])
    finals = [
        dict(regime=regime, method=method, chosen=chosen[regime, method], seed=seed)
        for regime, method in pairs
        for seed in FINAL_SEEDS
    ]
    results = run_units(final, finals, label="final", **run)
    record = {
        "design": design,
        "tuning": [unit | {"accuracy": r} for unit, r in zip(units, tuning, strict=True)],
        "final": [
            {"regime": u["regime"], "method": u["method"], "seed": u["seed"]} | r
            for u, r in zip(finals, results, strict=True)
        ],
        "chosen": {regime: {m: chosen[regime, m] for m in GRID} for regime in REGIMES},
        "provenance": provenance(
            "puzzle",
            seeds=[*TUNING_SEEDS, *FINAL_SEEDS],
            wall_seconds=time.monotonic() - began,
            commit=commit,
        ),
    }
    save_result(output / "puzzle.json", record)
    run["cache"].unlink()
