"""A real federation against its simulation, and under faults (Chapter 17)."""

import importlib.util
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fedlib as fl
from fedlib.loopback import Loopback
from studies.record import commit_of, provenance, save_result

FOLDER = Path(__file__).parent / "federation_app"
SEEDS = (0, 1, 2)
ROUNDS = 2
FAULTS = "1:nan@0 2:shape@0 1:huge@1 1:slow@2 2:wait@2"
"""Of three clients in three rounds. A fault "wait" lasts until somebody kills its machine."""


def load_app():
    """Import the app's module, for its model and configuration."""
    spec = importlib.util.spec_from_file_location("federation_app", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def federation(num_clients: int) -> fl.ClientData:
    """Clients with 30, 40, ... scanned digits, in double precision."""
    digits = fl.load_digits()
    sizes = 30 + 10 * np.arange(num_clients)
    rows = slice(0, sizes.sum())
    images = torch.as_tensor(digits.images[rows]).double()
    return fl.ClientData(images, torch.as_tensor(digits.labels[rows]), sizes)


def disks(folder: Path, clients: fl.ClientData) -> list[Path]:
    """Give every client a folder with its own data; return the folders."""
    places = [folder / f"disk_{i}" for i in range(len(clients))]
    for i, place in enumerate(places):
        fl.save_clients(place / "train", [clients[i]])
    return places


def app(folder: Path, client: str = "client") -> Path:
    """Write a copy of the app, whose clients run the part of this name."""
    folder.mkdir()
    shutil.copy(FOLDER / "app.py", folder)
    text = (FOLDER / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(text.replace("app:client", f"app:{client}"))
    return folder


def distance(a: fl.Params, b: fl.Params) -> float:
    """Return the largest difference of a parameter."""
    return max(float((a[n] - b[n]).abs().max()) for n in b)


def simulated(clients: fl.ClientData, seed: int, **how) -> fl.Params:
    """Run the same algorithm by simulation."""
    parts = load_app()
    options = dict(seed=seed, progress=False) | how
    return fl.run_fedavg(parts.model, clients, parts.config(ROUNDS), **options).params


def survivors(clients: fl.ClientData, seed: int, counted: list[list[int]]) -> fl.Params:
    """Run rounds of plain FedAvg in which only some clients count."""
    parts = load_app()
    params, config = fl.params_of(parts.model), parts.config(len(counted))
    for t, ids in enumerate(counted):
        _, batches = fl.draw_round(clients, config, rng=np.random.default_rng([seed, t]))
        moved = [
            fl.local_sgd(parts.model, params, *clients[i], batches[i], lr=config.client_lr).params
            for i in ids
        ]
        params = params | fl.weighted_average(moved, clients.sizes[ids])
    return params


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("What was waited for did not happen.")
        time.sleep(0.1)
