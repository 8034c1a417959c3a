"""The experiment of Chapter 12: FedAvg against its one-step baseline on CIFAR.

For every federation, FedAvg with 1, 2, 5, 10 and 50 local steps is trained with as many rounds, and
with as many gradient steps; one local step is D-SGD. Each has its own step size, chosen on
validation clients. New clients then fine-tune the head alone, or all layers.
"""

__all__ = ["FEDERATIONS", "MATCHINGS", "config_of", "main", "settings"]

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from fedlib.clients import ClientData
from fedlib.experiments import cifar
from fedlib.experiments.cifar import Federation, adapt_all, adapt_heads, new_clients
from fedlib.experiments.store import provenance, run_units, save_result
from fedlib.fedavg import FedAvgConfig, run_fedavg
from fedlib.models import Params, params_of

ROUNDS, LOCAL_STEPS = 40, (1, 2, 5, 10, 50)
MATCHINGS = ("steps", "rounds")
"""Compared at equal numbers of gradient steps per run (40 x 50 rounds' worth), or of rounds."""

FEDERATIONS = [
    Federation(regime, classes) for classes in (5, 20, 80) for regime in ("shared", "private")
]
TUNING_SEED, FINAL_SEEDS = 100, (0, 1, 2, 3, 4)

STEP_SIZES = [0.05 * 2.0**power for power in range(-5, 9)]
FIRST_TRIED = {
    "steps": {1: 0.2, 2: 0.2, 5: 0.1, 10: 0.1, 50: 0.05},
    "rounds": {1: 0.8, 2: 0.4, 5: 0.2, 10: 0.2},
}
"""The middle of the first three step sizes tried; more are, until the best is not at the edge."""

HEAD_LRS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
ALL_LRS = [0.01, 0.02, 0.05, 0.1, 0.2]
SCRATCH = dict(steps=400)
BUDGET = 20
"""Images per class with which step sizes are chosen."""

RUNS = Path("_build/runs")
"""Trained parameters are kept here, for other experiments to look into."""


def settings() -> list[dict]:
    """Return what is compared: federation, local steps and matching; and the references."""
    grid = [
        dict(federation=list(federation), local_steps=tau, matching=matching)
        for federation in FEDERATIONS
        for matching in MATCHINGS
        for tau in LOCAL_STEPS
        if matching == "steps" or tau < max(LOCAL_STEPS)
    ]
    return [dict(federation=["pooled", 80, 1, 0.0], local_steps=50, matching="steps"), *grid]


def config_of(setting: dict, client_lr: float) -> FedAvgConfig:
    """Return the configuration of a run."""
    tau, pooled = setting["local_steps"], setting["federation"][0] == "pooled"
    rounds = ROUNDS if setting["matching"] == "rounds" else ROUNDS * max(LOCAL_STEPS) // tau
    return FedAvgConfig(
        num_rounds=rounds,
        local_steps=tau,
        cohort_size=1 if pooled else 10,
        batch_size=100 if pooled else 10,  # a step of all clients of a cohort, in one place
        client_lr=client_lr,
    )


def trained(setting: dict, client_lr: float, seed: int, **options) -> tuple[Params, dict]:
    """Train, or take what was trained before; return parameters and the series of metrics."""
    federation, config = Federation(*setting["federation"]), config_of(setting, client_lr)
    key = json.dumps([setting, repr(config), seed, inspect.getsource(cifar)], sort_keys=True)
    file = RUNS / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if file.exists() and not options:
        return load_file(file), {}
    if federation.regime == "pooled":
        clients = cifar.training_clients(Federation("shared", 20), seed)
        clients = ClientData(clients.inputs, clients.targets, np.array([clients.sizes.sum()]))
        model = cifar.model_for(Federation("shared", 80), seed)
        result = run_fedavg(model, clients, config, seed=seed, progress=False, **options)
    else:
        result = cifar.train(federation, config, seed, **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(result.params, file)
    history = result.history
    return result.params, {"round_num": history.round_num.tolist()} | {
        name: values.tolist() for name, values in history.metrics.items()
    }


def body_of(setting: dict, client_lr: float | None, seed: int, **options) -> tuple[Params, dict]:
    """Return a trained body, or an untrained one if there is no step size."""
    if client_lr is None:
        return params_of(cifar.model_for(Federation("shared", 80), seed)), {}
    return trained(setting, client_lr, seed, **options)


def tune(setting: dict, client_lr: float | None) -> dict:
    """Train with one step size; score validation clients' heads for each fine-tuning step size."""
    try:
        params, _ = body_of(setting, client_lr, TUNING_SEED)
    except FloatingPointError:
        return {str(lr): None for lr in HEAD_LRS}
    task = new_clients("validation", TUNING_SEED)
    scores = adapt_heads(params, task, {BUDGET: HEAD_LRS}, TUNING_SEED)[BUDGET]
    return {str(lr): _mean(accuracies) for lr, accuracies in scores.items()}


def tune_fine_tuning(setting: dict, client_lr: float | None) -> dict:
    """Choose the fine-tuning step sizes for a trained body; report what was tried."""
    params, _ = body_of(setting, client_lr, TUNING_SEED)
    task = new_clients("validation", TUNING_SEED)
    budgets = dict.fromkeys(cifar.BUDGETS, HEAD_LRS)
    tried = {
        "head": adapt_heads(params, task, budgets, TUNING_SEED),
        "all": adapt_all(params, task.of_first(5), {BUDGET: ALL_LRS}, TUNING_SEED),
    }
    if client_lr is None:
        scratch = adapt_all(params, task.of_first(5), {BUDGET: ALL_LRS}, TUNING_SEED, **SCRATCH)
        tried["scratch"] = scratch
    return {
        part: {
            str(budget): {str(lr): _mean(a) for lr, a in scores.items()}
            for budget, scores in by_budget.items()
        }
        for part, by_budget in tried.items()
    }


def final(setting: dict, client_lr: float | None, lrs: dict, seed: int) -> dict:
    """Train with the chosen step sizes; fine-tune new clients of every kind.

    ``lrs`` are the fine-tuning step sizes, ``{part: {budget: lr}}``.
    """
    unseen = new_clients("unseen", seed)
    chosen = {int(budget): [lr] for budget, lr in lrs["head"].items()}
    began = time.monotonic()

    def along(params: Params) -> dict[str, float]:
        return {
            "accuracy": _mean(_only(adapt_heads(params, unseen, {BUDGET: chosen[BUDGET]}, seed)))
        }

    options = {}
    if client_lr is not None and setting["matching"] == "steps":
        options = dict(
            metrics=along, eval_every=max(1, config_of(setting, client_lr).num_rounds // 8)
        )
    try:
        params, curve = body_of(setting, client_lr, seed, **options)
    except FloatingPointError as error:
        return {"diverged": str(error)}
    result = {"curve": _rounded(curve), "seconds": round(time.monotonic() - began, 1), "head": {}}
    result |= {part: {} for part in lrs}
    for kind in cifar.KINDS:
        task = unseen if kind == "unseen" else new_clients(kind, seed)
        scores = adapt_heads(params, task, chosen, seed)
        result["head"][kind] = {str(b): _only({b: scores[b]}) for b in scores}
        few = task.of_first(5)
        budgets = cifar.BUDGETS if kind == "unseen" else (BUDGET,)
        for part, more in {"all": {}, "scratch": SCRATCH}.items():
            if part in lrs:
                tried = {b: [lrs[part][str(BUDGET)]] for b in budgets}
                scores = adapt_all(params, few, tried, seed, **more)
                result[part][kind] = {str(b): _only({b: scores[b]}) for b in scores}
    return result


def spectrum(federation: list, client_lr: float, seed: int) -> dict:
    """Return singular values of the mean head and of a client's, on the centralised body."""
    params, _ = trained(settings()[0], client_lr, seed)
    clients = cifar.training_clients(Federation(*federation), seed)
    values = cifar.head_spectrum(params, clients, seed)
    return {name: [round(v, 4) for v in series[:20]] for name, series in values.items()}


def choose(tried: dict[str, float | None]) -> tuple[str, bool]:
    """Return the best entry's key, and whether smaller and larger step sizes were tried too."""
    order = sorted(tried, key=float)
    best = max(order, key=lambda lr: -1.0 if tried[lr] is None else tried[lr])
    return best, best not in (order[0], order[-1])


def search(run: Callable[..., list[dict]]) -> list[dict]:
    """Try client step sizes until every setting's best has a neighbour on either side."""
    tried = {_key(s): {} for s in settings()}
    wanted = {}
    for setting in settings():
        pooled = setting["federation"][0] == "pooled"
        middle = 0.1 if pooled else FIRST_TRIED[setting["matching"]][setting["local_steps"]]
        at = int(np.argmin(np.abs(np.array(STEP_SIZES) - middle)))
        wanted[_key(setting)] = STEP_SIZES[at - 1 : at + 2]
    while wanted:
        units = [
            dict(setting=json.loads(key), client_lr=lr) for key in wanted for lr in wanted[key]
        ]
        for unit, scores in zip(units, run(tune, units, label="tuning"), strict=True):
            tried[_key(unit["setting"])][unit["client_lr"]] = scores
        wanted = {}
        for key, by_lr in tried.items():
            best, inside = choose({str(lr): _best(scores) for lr, scores in by_lr.items()})
            if not inside:
                at = STEP_SIZES.index(float(best))
                lower = float(best) == min(by_lr)
                wanted[key] = [STEP_SIZES[at - 1] if lower else STEP_SIZES[at + 1]]
    return [
        {"setting": json.loads(key), "tried": {str(lr): by_lr[lr] for lr in sorted(by_lr)}}
        for key, by_lr in tried.items()
    ]


def main(output: Path, workers: int) -> None:
    """Tune, choose, run the final seeds one after the other, storing after each."""
    began = time.monotonic()
    design = {
        "rounds": ROUNDS,
        "head": cifar.HEAD,
        "all": cifar.ALL,
        "scratch": SCRATCH,
        "head_lrs": HEAD_LRS,
        "all_lrs": ALL_LRS,
        "width": cifar.WIDTH,
        "tuning_seed": TUNING_SEED,
    }
    version = hashlib.sha256((str(design) + inspect.getsource(cifar)).encode()).hexdigest()[:8]
    cache = output / f"one_step.{version}.partial.jsonl"

    def run(function: Callable[..., dict], units: list[dict], *, label: str) -> list[dict]:
        tagged = [dict(function=function.__name__, **unit) for unit in units]
        return run_units(_dispatch, tagged, cache=cache, workers=workers, label=label)

    tuning = search(run)
    chosen = [{"setting": {"federation": ["untrained", 80, 1, 0.0]}, "client_lr": None}]
    for entry in tuning:
        best, _ = choose({lr: _best(scores) for lr, scores in entry["tried"].items()})
        chosen.append({"setting": entry["setting"], "client_lr": float(best)})
    for entry, tried in zip(
        chosen, run(tune_fine_tuning, chosen, label="fine-tuning"), strict=True
    ):
        entry["tried"] = tried
        entry["lrs"] = {
            part: {budget: float(choose(scores)[0]) for budget, scores in by_budget.items()}
            for part, by_budget in tried.items()
        }
    finals = []
    for seed in FINAL_SEEDS:
        units = [
            dict(setting=e["setting"], client_lr=e["client_lr"], lrs=e["lrs"], seed=seed)
            for e in chosen
        ]
        results = run(final, units, label=f"seed {seed}")
        finals += [
            {"setting": unit["setting"], "seed": seed} | result
            for unit, result in zip(units, results, strict=True)
        ]
        spectra = [
            dict(federation=list(f), client_lr=chosen[1]["client_lr"], seed=s)
            for f in FEDERATIONS
            for s in FINAL_SEEDS[: FINAL_SEEDS.index(seed) + 1]
        ]
        heads = run(spectrum, spectra, label="mean heads")
        record = {
            "design": design,
            "tuning": tuning,
            "chosen": chosen,
            "final": finals,
            "mean_head": [u | r for u, r in zip(spectra, heads, strict=True)],
            "provenance": provenance(
                "one_step",
                seeds=[TUNING_SEED, *FINAL_SEEDS[: FINAL_SEEDS.index(seed) + 1]],
                wall_seconds=time.monotonic() - began,
            ),
        }
        save_result(output / "one_step.json", record)


def _dispatch(function: str, **unit) -> dict:
    return globals()[function](**unit)


def _key(setting: dict) -> str:
    return json.dumps(setting, sort_keys=True)


def _best(scores: dict[str, float | None]) -> float | None:
    return max((a for a in scores.values() if a is not None), default=None)


def _mean(accuracies: list[float] | None) -> float | None:
    return None if accuracies is None else round(float(np.mean(accuracies)), 4)


def _only(scores: dict) -> list[float] | None:
    """Return the accuracies of the only budget and step size."""
    ((by_lr,),) = (scores.values(),)
    ((accuracies,),) = (by_lr.values(),)
    return accuracies and [round(a, 3) for a in accuracies]


def _rounded(curve: dict) -> dict:
    return {name: [round(v, 4) for v in values] for name, values in curve.items()}
