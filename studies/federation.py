"""A real federation against its simulation, and under faults (Chapter 17)."""

import importlib.util
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fedlib as fl
from fedlib.loopback import Loopback, make_key
from studies.record import commit_of, provenance, save_result

FOLDER = Path(__file__).parent / "federation_app"
SEEDS = (0, 1, 2)
ROUNDS = 2
FAULTS = "1:nan@0 2:shape@0 1:huge@1 1:slow@2 2:wait@2"
"""Of three clients in three rounds. A fault "wait" lasts until somebody kills its machine."""

COUNTED = [[0], [0, 2], [0]]
"""The clients that are left to average in those rounds."""


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


def until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("What was waited for did not happen.")
        time.sleep(0.1)


def run_equal(folder: Path, seed: int) -> dict:
    """Run FedAvg and fine-tuning, Ditto, and FedAdam with a server that is killed halfway.

    Returns:
        Parameters by algorithm; clients and their disks; the logs; and whether FedAdam had not
        ended when its server was killed.
    """
    clients = federation(2)
    places = disks(folder, clients)
    plain, own = app(folder / "app"), app(folder / "ditto", "ditto_client")
    files = {name: str(folder / f"{name}.safetensors") for name in ("fedavg", "ditto", "fedadam")}
    adam = dict(algorithm="fedadam", checkpoint=str(folder / "fedadam"), out=files["fedadam"])
    with Loopback(folder / "federation", clients=places) as running:
        runs = [
            running.submit(plain, seed=seed, out=files["fedavg"], **{"fine-tuning": 5}),
            running.submit(own, seed=seed, algorithm="ditto", out=files["ditto"]),
        ]
        logs = [running.finish(run) for run in runs]
        killed = running.submit(plain, seed=seed, faults="0:mark@1", **adam)
        until((places[0] / "mark").exists)
        running.kill("superlink")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        halfway = not Path(files["fedadam"]).exists()
        running.start_superlink()
        logs.append(running.run(plain, seed=seed, **adam))
        processes = sorted(running.processes)
    params = {name: fl.flower.load_params(file) for name, file in files.items()}
    return dict(
        clients=clients, places=places, params=params, logs=logs, halfway=halfway,
        processes=processes, home=running.folder / "flower",
        told=json.loads(Path(f"{files['fedavg']}.json").read_text()),
    )  # fmt: skip


def run_faulty(folder: Path, seed: int, *, deadline: float = 40.0) -> dict:
    """Run three rounds in which two of three clients misbehave, beside a node that none invited.

    Returns:
        Final parameters, the clients, the run's log, and how the uninvited node ended.
    """
    clients = federation(3)
    places = disks(folder, clients)
    plain, out = app(folder / "app"), str(folder / "out.safetensors")
    with Loopback(folder / "federation", clients=places) as running:
        make_key(running.folder / "stranger")
        running.start_supernode(0, key="stranger")
        asked = dict(clients=3, rounds=3, deadline=deadline, faults=FAULTS, seed=seed, out=out)
        run = running.submit(plain, **asked)
        until((places[2] / "wait").exists)
        running.kill("client_2")
        log = running.finish(run)
        stranger = running.processes["stranger"].poll()
        refused, superlink = running.log("stranger"), running.log("superlink")
    return dict(
        clients=clients, log=log, params=fl.flower.load_params(out), stranger=stranger,
        refused=refused, superlink=superlink,
    )  # fmt: skip


def compute(output: Path, workers: int) -> None:
    """Compare real federations with simulations, three times, and once with faults."""
    commit, began = commit_of(), time.monotonic()
    differences = {name: [] for name in ("FedAvg", "Ditto", "FedAdam", "faults")}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found = run_equal(Path(folder), seed)
        clients, params = found["clients"], found["params"]
        plain = simulated(clients, seed)
        differences["FedAvg"].append(distance(params["fedavg"], plain))
        differences["Ditto"].append(distance(params["ditto"], plain))
        adam = simulated(clients, seed, server_rule=fl.fedadam())
        differences["FedAdam"].append(distance(params["fedadam"], adam))
    with tempfile.TemporaryDirectory() as folder:
        bad = run_faulty(Path(folder), SEEDS[0], deadline=90.0)
    alone = survivors(bad["clients"], SEEDS[0], COUNTED)
    differences["faults"].append(distance(bad["params"], alone))
    lines = [line for line in bad["log"].splitlines() if "WARNING" in line]
    record = {
        "differences": differences,
        "processes": found["processes"],
        "log": [line.partition(":")[2].strip() for line in lines],
        "uninvited": next(line for line in bad["refused"].splitlines() if "code:" in line).strip(),
        "resumed": found["halfway"],
        "provenance": provenance(
            "python -m studies federation",
            seeds=SEEDS,
            wall_seconds=time.monotonic() - began,
            commit=commit,
        ),
    }
    save_result(output / "federation.json", record)
