"""The workloads: data, starting point and every batch, so that all contestants do the same work."""

__all__ = ["GROWTH", "QUICK", "WORKLOADS", "Workload", "build", "loss_on", "make"]

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

import fedlib as fl

DRAWN = 20
"""Rounds that are drawn; a contestant that gets further starts again with the first."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained, on how much data, for how many steps.

    Args:
        model: "lenet", "linear" or "mlp".
        shape: shape of one input.
        hidden: width of the MLP's body, or number of features of the linear model.
        num_clients: clients M of the federation.
        size: examples per client.
        cohort_size: clients m of a round.
        local_steps: SGD steps τ of a client.
        batch_size: examples per step; ``size`` makes it gradient descent.
        client_lr: step size α.
    """

    model: str
    shape: tuple[int, ...]
    hidden: int = 0
    num_clients: int
    size: int
    cohort_size: int
    local_steps: int
    batch_size: int
    client_lr: float = 0.01

    def config(self) -> fl.FedAvgConfig:
        """Return one round of it, for fedlib."""
        return fl.FedAvgConfig(
            num_rounds=1,
            local_steps=self.local_steps,
            cohort_size=self.cohort_size,
            batch_size=self.batch_size,
            client_lr=self.client_lr,
        )


IMG = Workload(
    model="lenet",
    shape=(3, 32, 32),
    num_clients=100,
    size=500,
    cohort_size=10,
    local_steps=50,
    batch_size=10,
)
LIN = Workload(
    model="linear",
    shape=(100,),
    hidden=5,
    num_clients=100,
    size=25,
    cohort_size=100,
    local_steps=10,
    batch_size=25,
    client_lr=0.05,
)
MLP = Workload(
    model="mlp",
    shape=(1, 28, 28),
    hidden=64,
    num_clients=200,
    size=200,
    cohort_size=100,
    local_steps=10,
    batch_size=10,
)
FEWER = replace(IMG, num_clients=50)  # the time does not depend on it, only that of making it
SMALL = replace(MLP, shape=(64,), size=10)

WORKLOADS = {"IMG": IMG, "IMG1": replace(IMG, local_steps=1), "LIN": LIN, "MLP": MLP}
"""What every contestant runs."""

QUICK = {
    name: replace(
        work,
        num_clients=4,
        size=min(work.size, 20),
        cohort_size=4 if work.cohort_size == work.num_clients else 2,
        local_steps=min(work.local_steps, 3),
        batch_size=min(work.batch_size, 20),
    )
    for name, work in WORKLOADS.items()
}
"""The same in tiny, for tests."""

GROWTH = {
    "IMG, cohort": {m: replace(FEWER, cohort_size=m) for m in (1, 5, 10, 20, 50)},
    "IMG, local steps": {t: replace(FEWER, local_steps=t) for t in (1, 2, 5, 10, 20, 50)},
    "MLP, cohort": {m: replace(MLP, cohort_size=m) for m in (1, 10, 50, 100, 200)},
    "MLP, width": {h: replace(MLP, hidden=h) for h in (16, 64, 256, 1024)},
    "small MLP, clients": {m: replace(SMALL, num_clients=m) for m in (100, 1_000, 10_000, 100_000)},
}
"""How time and memory grow, one number at a time."""


def build(work: Workload) -> nn.Module:
    """Return the model at its starting point, the way a user of fedlib would write it."""
    if work.model == "linear":
        model = fl.LinearNet(*work.shape, work.hidden)
        # From w = 0 the body would not move in the first step.
        nn.init.constant_(model.head.weight, 0.1)
        return model
    if work.model == "mlp":
        return fl.MLP(work.shape, 10, hidden=(work.hidden,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        return fl.BodyHead(body, nn.Linear(84, 10))


def make(work: Workload, path: Path) -> None:
    """Write everything that a contestant needs to one file.

    ``inputs`` and ``targets`` hold ``size`` rows per client, one client after the other;
    ``cohorts`` the ids of each round's clients; ``batches`` the positions among a client's
    examples, shape (rounds, cohort, local_steps, batch_size); ``start/NAME`` the initial
    parameters; ``work`` the workload as JSON. Round t is drawn as
    ``fl.run_round(..., rng=np.random.default_rng([0, t]))`` draws it.
    """
    rng = np.random.default_rng(0)
    total = work.num_clients * work.size
    inputs = rng.standard_normal((total, *work.shape), dtype=np.float32)
    if work.model == "linear":
        targets = rng.standard_normal(total, dtype=np.float32)
    else:
        targets = rng.integers(0, 10, total)
    cohorts, batches = zip(*(_draw(work, t) for t in range(DRAWN)), strict=True)
    start = {f"start/{name}": p.numpy() for name, p in fl.params_of(build(work)).items()}
    arrays = dict(inputs=inputs, targets=targets, cohorts=cohorts, batches=batches)
    np.savez(path, work=json.dumps(asdict(work)), **arrays, **start)


def _draw(work: Workload, t: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([0, t])
    cohort = np.arange(work.num_clients)
    if work.cohort_size < work.num_clients:
        cohort = rng.choice(work.num_clients, work.cohort_size, replace=False)
    options = dict(local_steps=work.local_steps, batch_size=work.batch_size, rng=rng)
    return cohort, np.stack([fl.draw_batches(work.size, **options) for _ in cohort])


def loss_on(path: Path, *, num_clients: int = 10) -> Callable[[Mapping[str, np.ndarray]], float]:
    """Return the function from parameters to their loss on all data of the first clients."""
    with np.load(path) as file:
        work = Workload(**json.loads(str(file["work"])))
        rows = slice(0, num_clients * work.size)
        inputs, targets = (torch.from_numpy(file[name][rows]) for name in ("inputs", "targets"))
    if targets.is_floating_point():
        targets = targets.double()
    model, inputs = build(work), inputs.double()

    def loss(params: Mapping[str, np.ndarray]) -> float:
        double = {name: torch.from_numpy(p).double() for name, p in params.items()}
        with torch.no_grad():
            return float(fl.task_loss(functional_call(model, double, (inputs,)), targets))

    return loss
