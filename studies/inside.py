"""The measurements of Chapter 13: what the networks of Chapter 12 have learned, layer by layer.

Images are those of the 20 classes that no training client holds; but for ``own_heads``, which looks
at training clients in the course of a round. Step sizes are the ones chosen in
``one_step.json``, and parameters are taken from that experiment's runs where they are kept.
"""

__all__ = ["FEDERATIONS", "LAYERS", "METHODS", "compute"]

import time
from pathlib import Path

import numpy as np

from fedlib.evaluate import evaluate
from fedlib.finetune import fine_tune
from fedlib.models import Params, with_body
from fedlib.represent import class_similarity, effective_rank, features, linear_cka, linear_probe
from fedlib.stored import CENTRALISED, UNTRAINED
from studies import federations
from studies.federations import Federation
from studies.one_step import chosen_lrs
from studies.record import commit_of, provenance, save_result
from studies.runner import Runner
from studies.tuning import BATCH_SIZE, config_of, trained

FEDERATIONS = (Federation("shared", 20), Federation("private", 5))
METHODS = {
    "fedavg": dict(local_steps=50, matching="steps"),
    "one_step_same_steps": dict(local_steps=1, matching="steps"),
    "one_step_same_rounds": dict(local_steps=1, matching="rounds"),
}
LAYERS = {"first pooling": 2, "second pooling": 5, "features": 8}
"""Positions in the body of ``CNN``."""

OWN_HEADS = [
    dict(federation=list(Federation(*federation)), local_steps=tau, matching="steps")
    for federation, tau in (
        *((("private", 5), tau) for tau in (2, 10, 50)),
        *((federation, 50) for federation in (("private", 20), ("private", 80), ("shared", 20))),
    )
]
LOCAL_STEPS = (0, 1, 2, 5, 10, 20, 50)
"""Where clients are followed through a round, and after how many of their steps."""

SEEDS = (0, 1, 2, 3, 4)
TRAIN_PER_CLASS, ENTRIES = 50, 20
"""Images of each class that probes learn from; how often a run is looked into."""

STRENGTH = 0.01
"""The probes' ``C``."""


def unseen_images(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images and labels of the unseen classes: for probes to learn from, and for the rest.

    Shapes (1000, 3, 16, 16), (1000,), (2000, 3, 16, 16), (2000,).
    """
    classes, rows = federations.class_rows(seed)
    unseen = classes[federations.NUM_KNOWN :]
    images, labels = federations.load_images("cifar100", "train")
    test_images, test_labels = federations.load_images("cifar100", "test")
    learn = rows[unseen, :TRAIN_PER_CLASS].ravel()
    test = np.flatnonzero(np.isin(test_labels, unseen))
    return images[learn], labels[learn], test_images[test], test_labels[test]


def look(federation: list, runs: dict[str, tuple[dict, float | None]], seed: int) -> dict:
    """Measure every layer of every method's network, and compare each two networks.

    Args:
        federation: what was trained on.
        runs: setting and client step size of every method.
        seed: of the runs.

    Returns:
        ``{"layers": {layer: {method: numbers}}, "cka": {layer: square matrix in runs' order}}``.
    """
    train_images, train_labels, images, labels = unseen_images(seed)
    model = federations.model_for(Federation("shared", 80), seed)
    params = {name: with_body(model, trained(s, lr, seed)[0]) for name, (s, lr) in runs.items()}
    layers, cka = {}, {}
    for layer, position in LAYERS.items():
        seen = {n: features(model, p, images, layer=position) for n, p in params.items()}
        layers[layer] = {}
        for name, outputs in seen.items():
            raw, centred = (class_similarity(outputs, labels, centre=c) for c in (False, True))
            learn = features(model, params[name], train_images, layer=position)
            layers[layer][name] = {
                "within": round(raw.within, 4),
                "between": round(raw.between, 4),
                "centred_within": round(centred.within, 4),
                "centred_between": round(centred.between, 4),
                "effective_rank": round(effective_rank(outputs), 2),
                "probe": round(linear_probe(learn, train_labels, outputs, labels, C=STRENGTH), 4),
            }
        cka[layer] = [[round(linear_cka(x, y), 4) for y in seen.values()] for x in seen.values()]
    return {"layers": layers, "cka": cka}


def along(setting: dict, client_lr: float, seed: int) -> dict:
    """Train once more; measure the features' effective rank and class similarity on the way."""
    _, _, images, labels = unseen_images(seed)
    model = federations.model_for(Federation("shared", 80), seed)

    def metrics(params: Params) -> dict[str, float]:
        outputs = features(model, with_body(model, params), images)
        similarity = class_similarity(outputs, labels, centre=True)
        return {"effective_rank": effective_rank(outputs), "centred_within": similarity.within}

    every = config_of(setting, client_lr).num_rounds // ENTRIES
    _, series = trained(setting, client_lr, seed, metrics=metrics, eval_every=every)
    return {name: [round(v, 4) for v in values] for name, values in series.items()}


def own_heads(setting: dict, client_lr: float, seed: int) -> dict:
    """Start ten clients from the trained server; score each on its own classes, step by step."""
    federation = Federation(*setting["federation"])
    params, _ = trained(setting, client_lr, seed)
    model = federations.model_for(federation, seed)
    train, test = federations.training_task(federation, seed)
    how = dict(lr=client_lr, batch_size=BATCH_SIZE, seed=seed)
    found = []
    for steps in LOCAL_STEPS:
        local = fine_tune(model, params, train, steps=steps, **how) if steps else params
        found.append(round(float(evaluate(model, local, test).mean()), 4))
    return {"accuracy": found}


def compute(output: Path, workers: int) -> None:
    """Measure all runs and store everything in ``output/inside.json``."""
    began, commit = time.monotonic(), commit_of()

    def run_of(setting: dict) -> tuple[dict, float | None]:
        return setting, *chosen_lrs(output, [setting])

    runs = {
        tuple(federation): {
            "untrained": run_of(UNTRAINED),
            **{n: run_of(dict(federation=list(federation), **m)) for n, m in METHODS.items()},
            "centralised": run_of(CENTRALISED),
        }
        for federation in FEDERATIONS
    }
    design = {
        "layers": LAYERS,
        "methods": METHODS,
        "runs": {str(federation): own for federation, own in runs.items()},
        "train_per_class": TRAIN_PER_CLASS,
        "strength": STRENGTH,
        "entries": ENTRIES,
        "local_steps": LOCAL_STEPS,
    }
    looks = [
        dict(federation=list(federation), runs=own, seed=seed)
        for seed in SEEDS
        for federation, own in runs.items()
    ]
    ways = [
        dict(setting=setting, client_lr=lr, seed=seed)
        for seed in SEEDS
        for own in runs.values()
        for setting, lr in (own["fedavg"], own["one_step_same_steps"])
    ]
    starts = [run_of(setting) for setting in OWN_HEADS]
    clients = [
        dict(setting=setting, client_lr=lr, seed=seed) for seed in SEEDS for setting, lr in starts
    ]
    planned = {"look": len(looks), "along": len(ways), "own_heads": len(clients)}
    run = Runner(output / "inside.partial.jsonl", workers, planned)
    seen = run(look, looks, label="layers")
    rounds = run(along, ways, label="rounds")
    heads = run(own_heads, clients, label="own heads")
    record = {
        "design": design,
        "layers": [
            {"federation": u["federation"], "seed": u["seed"]} | r
            for u, r in zip(looks, seen, strict=True)
        ],
        "rounds": [u | r for u, r in zip(ways, rounds, strict=True)],
        "own_heads": [u | r for u, r in zip(clients, heads, strict=True)],
        "provenance": provenance(
            "python -m studies inside",
            seeds=SEEDS,
            wall_seconds=time.monotonic() - began,
            commit=commit,
        )
        | {"compute_seconds": run.seconds},
    }
    save_result(output / "inside.json", record)
