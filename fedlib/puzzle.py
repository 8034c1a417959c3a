"""The puzzle of Chapter 3: clients that hold a few letters each, and new ones that hold digits.

Who the clients are, how a network is trained on them, and how it serves new clients. A network
takes seconds; the whole comparison, with step sizes and seeds, is ``studies/puzzle.py``.
"""

__all__ = [
    "DIGITS",
    "METHODS",
    "PARTS",
    "REGIMES",
    "SYMBOLS",
    "model_for",
    "new_clients",
    "score",
    "train",
    "train_clients",
]

import string
from typing import Any

import numpy as np

from fedlib.clients import ClientData
from fedlib.evaluate import evaluate
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

FINE_TUNING: dict[str, Any] = dict(steps=160, batch_size=10)
SYMBOLS, DIGITS = "#$%&*+=?@<", string.digits
"""Classes of validation clients, and of the new clients that count."""


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
        return FedAvgResult(params_of(model), None)  # type: ignore[arg-type]  # not trained
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
