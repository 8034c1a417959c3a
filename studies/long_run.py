"""FedAvg against one step until both are trained: the experiment of Chapter 12, carried on.

Design.

- Federations: C = 5, 20, 80 classes per client, shared or private labels, 100 clients of 240
  images; and C = 2, where the images suffice for 80 clients only. Images, network, cohort of 10,
  batch of 10, splits and random numbers are those of ``one_step.json``: the first 2,000 gradient
  steps of a run are that study's run.
- Methods at equal gradient steps: FedAvg with 50 local steps, with 10, and one step. A run's body
  is scored after 500, 1,000, ..., 32,000 gradient steps of each of the cohort's ten places.
- Scores: accuracy of ten new clients of each kind after fine-tuning with 20 images per class: the
  head by SGD, and the head's optimum ("probe", logistic regression on standardised features); at
  three points all layers. All step sizes and penalties are stored, and which one counts is chosen
  on validation clients (``best``), whose test images nobody else meets.
- Step sizes: C = 5 runs three of them for every seed. Elsewhere every seed runs the one that was
  best at 2,000 steps, and those that two tuning seeds, which are not reported, find best at 8,000
  and at 32,000 steps (``tuned``). Diverged runs are rows, too.
- Controls ask what makes the difference: ``CONTROLS``.
- ``plan`` is the order of work: three seeds everywhere before five anywhere.
"""

__all__ = ["Run", "best", "best_step_size", "main", "plan", "score", "table", "train", "work"]

import argparse
import fcntl
import json
import os
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedlib._checks import check_in
from fedlib.aggregate import server_step
from fedlib.algorithm import Algorithm
from fedlib.algorithm import run as run_algorithm
from fedlib.clients import ClientData
from fedlib.cohort import Plan
from fedlib.cohort import plan as plan_cohorts
from fedlib.evaluate import evaluate
from fedlib.fedavg import FedAvgConfig, draw_round, identity_of, run_fedavg
from fedlib.fedrep import run_fedrep
from fedlib.models import Params, params_of
from fedlib.represent import class_similarity, effective_rank, features
from fedlib.rules import LocalStep, sgd
from fedlib.validate import check_model
from studies import federations as cifar
from studies import fine_tuning
from studies import tuning as study
from studies.federations import KINDS, Federation, Task
from studies.inside import unseen_images
from studies.one_step import chosen_lrs
from studies.record import ROOT, commit_of, entries, provenance, save_result
from studies.tuning import BATCH_SIZE, BUDGET, COHORT_SIZE, rounded_mean

FOLDER, RESULTS = ROOT / "_build" / "long_run", ROOT / "book" / "results"

POINTS = [500, 1000, 2000, 4000, 8000, 16000, 32000]
"""Gradient steps after which a run is scored."""

ALL_POINTS = (2000, 8000, 32000)
"""Where new clients fine-tune all layers, too."""

SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
GRID = {1: [0.025, 0.05, 0.1, 0.2], 10: [0.05, 0.1, 0.2], 50: [0.025, 0.05, 0.1]}
"""Step sizes by local steps."""

EARLY = {1: 0.1, 10: 0.1, 50: 0.05}
"""The usual best at 2,000 steps: first in the queue, and that of the controls."""

HORIZONS = (8000, 32000)
HEAD_LRS = [0.0002, 0.0005, 0.001, 0.002, 0.005, *study.HEAD_LRS]
ALL_LRS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
STRENGTHS = [0.001, 0.01, 0.03, 0.1, 0.3]
"""The probe's ``C``: the weight of the data against the penalty."""

NEW_CLIENTS, FEW_CLIENTS = 10, 5
"""New clients of each kind; and those that fine-tune all layers."""

WIDTH, COMPILED, NEVER = cifar.WIDTH, "compiled", 10**9
DECAY, HEAD_STEPS = 0.002, 5

CONTROLS = [
    ("augmented", "private", 1),  # flips and shifts: no image comes twice. Is it memorising?
    ("own_heads", "private", 1),  # every client its own head, one step. Is it the heads?
    ("kept_cohort", "private", 1),  # one step on FedAvg's cohorts and batches. Or the cohorts?
    ("noisy", "shared", 1),  # one meaning for each label, and wrong ones. Is it the contradiction?
    ("weight_decay", "private", 1),
    ("cooled", "private", 1),  # the step size falls to zero
    ("fedrep", "private", 50),
    ("augmented", "shared", 1),
    ("augmented", "private", 50),
    ("augmented", "shared", 50),
    ("noisy", "shared", 50),
    ("kept_cohort", "shared", 1),
    ("cooled", "shared", 1),
    ("cooled", "shared", 50),
    ("cooled", "private", 50),
    ("weight_decay", "shared", 1),
    ("weight_decay", "private", 50),
]
"""Variants of a run with C = 5: name, labels, local steps."""


class Run(NamedTuple):
    """What defines a run.

    Attributes:
        federation: the training clients, but the seed.
        local_steps: per round; 1 is one step.
        client_lr: step size.
        seed: of everything.
        variant: "plain", "untrained", or a control's name.
    """

    federation: Federation
    local_steps: int
    client_lr: float
    seed: int
    variant: str = "plain"

    @property
    def name(self) -> str:
        """What its folder is called."""
        f = self.federation
        who = f"{f.regime}{f.classes}x{f.num_clients}" + (f"-{f.permuted:g}" * (f.permuted > 0))
        return f"{who}-{self.variant}-tau{self.local_steps}-lr{self.client_lr:g}-seed{self.seed}"

    @property
    def fields(self) -> dict:
        """What its rows say of it."""
        return self._asdict() | {"federation": list(self.federation)}


# ------------------------------------------------------------------------------- what is run


@cache
def early(federation: Federation, local_steps: int) -> float:
    """Return the step size that was best after 2,000 steps; for C = 2, the usual one."""
    if federation.classes == 2:
        return EARLY[local_steps]
    asked = dict(federation=list(federation), local_steps=local_steps, matching="steps")
    return chosen_lrs(RESULTS, [asked])[0]


def plan(rows: Sequence[dict]) -> list[Run]:
    """Return all runs in the order of work; some are known only when tuning runs have rows."""

    def federations(*classes: int) -> list[Federation]:
        return [
            Federation(regime, c, 80 if c == 2 else 100)
            for c in classes
            for regime in ("private", "shared")
        ]

    def longer(tau: int, seeds: Sequence[int], among: list[Federation]) -> list[Run]:
        found = {f: tuned(rows, f, tau) for f in among}
        return [Run(f, tau, lr, seed) for seed in seeds for f in among for lr in found[f]]

    def tuning(tau: int, among: list[Federation]) -> list[Run]:
        grid = sorted(GRID[tau], key=lambda lr: abs(np.log(lr / EARLY[tau])))  # from the middle
        return [Run(f, tau, lr, s) for f in among for lr in grid for s in TUNING_SEEDS]

    three, two, both = SEEDS[:3], SEEDS[3:], (1, 50)
    five, others = federations(5), federations(80, 20, 2)
    firsts = list(zip((0.1, 0.05, 0.2), (0.05, 0.1, 0.025), strict=True))

    def main(seeds: Sequence[int], pairs: Sequence[tuple[float, float]]) -> list[Run]:
        return [
            Run(f, tau, lr, seed)
            for seed in seeds
            for lrs in pairs
            for f in five
            for tau, lr in zip(both, lrs, strict=True)
        ]

    def wide(seeds: Sequence[int]) -> list[Run]:
        return [Run(f, t, early(f, t), seed) for seed in seeds for f in others for t in both]

    queue = [Run(Federation("untrained", 80), 1, 0.0, seed, "untrained") for seed in three]
    queue += main(three, firsts[:1]) + wide(three) + main(three, firsts[1:])
    for tau in both:
        queue += tuning(tau, five) + longer(tau, three, five)
    queue += [
        Run(Federation(regime, 5), tau, EARLY[tau], seed, variant)
        for seed in three
        for variant, regime, tau in CONTROLS
    ]
    for tau in both:
        queue += tuning(tau, others) + longer(tau, three, others)
    queue += [Run(f, 10, early(f, 10), seed) for f in five + others[:4] for seed in three]
    queue += tuning(10, five) + longer(10, three, five)
    queue += [Run(Federation("untrained", 80), 1, 0.0, seed, "untrained") for seed in two]
    queue += (
        main(two, firsts) + wide(two) + [r for t in both for r in longer(t, two, five + others)]
    )
    return list(dict.fromkeys(queue))


def tuned(rows: Sequence[dict], federation: Federation, local_steps: int) -> list[float]:
    """Return the step sizes that are best at the horizons, by head or probe; [] while some lack."""
    grid = GRID[local_steps]
    found = [
        best_step_size(rows, federation, local_steps, grid, steps, part)
        for steps, part in product(HORIZONS, ("head", "probe"))
    ]
    return [] if None in found else sorted(set(found))


def best_step_size(
    rows: Sequence[dict],
    federation: Federation,
    local_steps: int,
    grid: Sequence[float],
    steps: int,
    part: str,
) -> float | None:
    """Return the step size with the best validation clients at a point, mean over tuning seeds.

    A run that diverged before the point is worth nothing. None, if a run is not there yet.
    """
    worth = {}
    for lr in grid:
        for seed in TUNING_SEEDS:
            run = Run(federation, local_steps, lr, seed)
            own = [row for row in rows if run.fields.items() <= row.items()]
            at = [row for row in own if row["steps"] == steps]
            if at and part in at[0]:
                value = at[0][part]["validation"][best(at[0], part)] or 0.0
            elif any("diverged" in row for row in own):
                value = 0.0
            else:
                return None
            worth[lr] = worth.get(lr, 0.0) + value
    return max(worth, key=worth.get)


def best(row: dict, part: str) -> int:
    """Return the place of the step size or penalty that is best on validation clients."""
    return int(np.argmax([-1 if a is None else a for a in row[part]["validation"]]))


# ----------------------------------------------------------------------------------- training


def clients_of(run: Run) -> ClientData:
    """Return the training clients."""
    clients = cifar.training_clients(run.federation, run.seed)
    return noisy(clients, run) if run.variant == "noisy" else clients


def noisy(clients: ClientData, run: Run) -> ClientData:
    """Spoil shared labels, as many as do not have their class's commonest label if private.

    A spoilt label is another of the client's own.
    """
    orders = cifar.training_clients(run.federation._replace(regime="private"), run.seed).targets
    votes = np.zeros((cifar.NUM_CLASSES, run.federation.classes))
    np.add.at(votes, (clients.targets.numpy(), orders.numpy()), 1)
    rate = 1 - votes.max(1).sum() / votes.sum()
    rng, targets = np.random.default_rng([run.seed, 3]), clients.targets.clone()
    for start, size in zip(clients.starts, clients.sizes, strict=True):
        own = targets[start : start + size].numpy()
        labels, index = np.unique(own, return_inverse=True)
        other = rng.integers(1, len(labels), size=size)
        spoilt = labels[(index + other) % len(labels)]
        own[:] = np.where(rng.random(size) < rate, spoilt, own)
    return ClientData(clients.inputs, targets, clients.sizes)


def train(run: Run, steps: int, clients: ClientData, model: nn.Module, checkpoint: Path) -> Params:
    """Carry a run on to so many gradient steps; return parameters, and clients' own, if any.

    Raises:
        FloatingPointError: if it diverges.
        ValueError: if the variant is unknown.
    """
    if run.variant == "untrained":
        return params_of(model)
    tau, per_round = run.local_steps, STEPS_PER_ROUND.get(run.variant, run.local_steps)
    config = FedAvgConfig(
        num_rounds=steps // per_round,
        local_steps=tau,
        cohort_size=COHORT_SIZE,
        batch_size=BATCH_SIZE,
        client_lr=run.client_lr,
    )
    strategy = "merged" if tau == 1 else COMPILED
    how = dict(seed=run.seed, checkpoint=checkpoint, progress=False, eval_every=NEVER)
    match run.variant:
        case "own_heads" | "fedrep":
            head_steps = 1 if run.variant == "own_heads" else HEAD_STEPS
            config = replace(config, local_steps=per_round - head_steps)
            how |= dict(head_steps=head_steps, strategy=COMPILED)
            params, _, personal = run_fedrep(model, clients, config, **how)
            heads = [name for name in params if name.startswith("head.")]
            return params | {f"own.{n}": torch.stack([each[n] for each in personal]) for n in heads}
        case "weight_decay":  # clients merge for plain SGD only
            how |= dict(step=decaying(DECAY), strategy=COMPILED)
            return run_fedavg(model, clients, config, **how).params
        case "augmented" | "kept_cohort" | "cooled":
            algorithm = ALGORITHMS[run.variant](model, clients, config, strategy)
            algorithm.identity["variant"] = run.variant
            return run_algorithm(algorithm, model, num_rounds=config.num_rounds, **how).params
        case _:
            check_in("variant", run.variant, ["plain", "noisy"])
            return run_fedavg(model, clients, config, strategy=strategy, **how).params


def planned(model: nn.Module, clients: ClientData, config: FedAvgConfig, strategy: str) -> Plan:
    """Return how cohorts are run, by plain SGD."""
    ready = check_model(model, params_of(model), clients)
    return plan_cohorts(ready, strategy=strategy, local_steps=[config.local_steps], merges=True)


def averaged(
    how: Plan, clients: ClientData, params: Params, cohort: np.ndarray, batches: list, lr: float
) -> tuple[Params, float]:
    """Return the cohort's average after its local steps, and its mean loss."""
    total = how.sum(clients, params, cohort, batches, lr=lr)
    average = total.average(params)
    before = {name: params[name] for name in average}
    return params | server_step(before, average), total.mean_loss


def augmented(
    model: nn.Module, clients: ClientData, config: FedAvgConfig, strategy: str
) -> Algorithm:
    """Return FedAvg on images that are flipped and shifted anew whenever they are drawn."""
    how = planned(model, clients, config, strategy)

    def play(params: Params, rng: np.random.Generator) -> tuple[Params, dict]:
        cohort, batches = draw_round(clients, config, rng=rng)
        starts = clients.starts[cohort]
        rows = np.concatenate([s + b.ravel() for s, b in zip(starts, batches, strict=True)])
        sizes = np.array([b.size for b in batches])
        drawn = ClientData(augment(clients.inputs[rows], rng), clients.targets[rows], sizes)
        order = [np.arange(b.size).reshape(b.shape) for b in batches]
        params, loss = averaged(how, drawn, params, np.arange(len(cohort)), order, config.client_lr)
        return params, {"loss": loss}

    return Algorithm(dict, play, dict, identity_of(how, clients, config))


def kept_cohort(
    model: nn.Module, clients: ClientData, config: FedAvgConfig, strategy: str
) -> Algorithm:
    """Return FedAvg with its cohorts and batches, but averaged after every step."""
    how, many = planned(model, clients, config, strategy), replace(config, local_steps=KEPT_STEPS)

    def play(params: Params, rng: np.random.Generator) -> tuple[Params, dict]:
        cohort, batches = draw_round(clients, many, rng=rng)
        losses = []
        for t in range(KEPT_STEPS):
            now = [rows[t : t + 1] for rows in batches]
            params, loss = averaged(how, clients, params, cohort, now, config.client_lr)
            losses.append(loss)
        return params, {"loss": float(np.mean(losses))}

    return Algorithm(dict, play, dict, identity_of(how, clients, config))


def cooled(model: nn.Module, clients: ClientData, config: FedAvgConfig, strategy: str) -> Algorithm:
    """Return FedAvg with a step size that falls in a line, to zero at the last point."""
    last, how = POINTS[-1] // config.local_steps, planned(model, clients, config, strategy)

    def params_in(state: Params) -> Params:
        return {name: p for name, p in state.items() if name != "round"}

    def play(state: Params, rng: np.random.Generator) -> tuple[Params, dict]:
        lr = config.client_lr * (1 - float(state["round"]) / last)
        cohort, batches = draw_round(clients, config, rng=rng)
        params, loss = averaged(how, clients, params_in(state), cohort, batches, lr)
        return params | {"round": state["round"] + 1}, {"loss": loss}

    def init(params: Params) -> Params:
        return params | {"round": torch.zeros(())}

    return Algorithm(init, play, params_in, identity_of(how, clients, config))


ALGORITHMS = {"augmented": augmented, "kept_cohort": kept_cohort, "cooled": cooled}
KEPT_STEPS = 50
STEPS_PER_ROUND = {"own_heads": 2, "kept_cohort": KEPT_STEPS}
"""Gradient steps per round, where they are not the local steps; those on the head count."""


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip every second image or so, and shift each by up to two pixels; edges are repeated."""
    n, _, height, breadth = images.shape
    flip = torch.as_tensor(rng.random(n) < 0.5)[:, None, None, None]
    images = torch.where(flip, images.flip(3), images)
    down, right = torch.as_tensor(rng.integers(-2, 3, size=(2, n, 1)))
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(breadth) + right).clamp(0, breadth - 1)
    every = torch.arange(n)[:, None, None]
    # An index before and after the colours' axis puts that axis last.
    return images[every, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


def decaying(rate: float) -> LocalStep:
    """Return SGD on the loss plus ``rate / 2`` times the squared norm of all parameters."""

    def update(params, grads, state, lr):
        pulled = [g + rate * p for p, g in zip(params, grads, strict=True)]
        return sgd.update(params, pulled, state, lr)

    return LocalStep(f"decaying({rate})", sgd.init, update)


# ------------------------------------------------------------------------------------ scoring


@lru_cache(maxsize=1)
def tasks_of(seed: int) -> dict[str, Task]:
    """Return new clients of each kind, with the images that they may learn from."""
    return {
        kind: cifar.new_clients(kind, seed, num_clients=NEW_CLIENTS).with_budget(BUDGET)
        for kind in ("validation", *KINDS)
    }


def score(run: Run, steps: int, state: Params, clients: ClientData, model: nn.Module) -> dict:
    """Return what is stored of one point of a run, but for times."""
    params = {name: state[name] for name in params_of(model)}
    tasks, seed, width = tasks_of(run.seed), run.seed, dict(width=WIDTH)
    head = cifar.CNN(cifar.SHAPE, cifar.WAYS, seed=seed, **width).head
    row = {"head": {}, "probe": {}} | represented(params, seed)
    for kind, task in tasks.items():
        seen = Task(*(cifar.featured(params, half, **width) for half in task))
        tried = cifar.try_step_sizes(
            head, params_of(head), seen, {BUDGET: HEAD_LRS}, seed, cifar.HEAD
        )
        row["head"][kind] = [rounded_mean(tried[BUDGET][lr]) for lr in HEAD_LRS]
        row["probe"][kind] = [rounded_mean(fine_tuning.probe(seen, C)) for C in STRENGTHS]
    if steps in ALL_POINTS:
        row["all"] = fine_tuned(params, tasks, seed)
    if run.variant != "untrained":
        row["training"] = fitted(run, state, clients, model)
    return row


def fine_tuned(params: Params, tasks: dict[str, Task], seed: int) -> dict:
    """Fine-tune all layers of few clients: all step sizes on validation clients, then the best."""

    def tried(kind: str, lrs: list[float]) -> list[float | None]:
        few = tasks[kind].of_first(FEW_CLIENTS)
        scores = cifar.adapt_all(params, few, {BUDGET: lrs}, seed, width=WIDTH)[BUDGET]
        return [rounded_mean(scores[lr]) for lr in lrs]

    row = {"validation": tried("validation", ALL_LRS)}
    lr = ALL_LRS[best({"all": row}, "all")]
    return row | {"lr": lr} | {kind: tried(kind, [lr])[0] for kind in KINDS}


def represented(params: Params, seed: int) -> dict:
    """Describe the features of unseen classes' test images.

    Raises:
        FloatingPointError: if they are not finite.
    """
    _, _, images, labels = unseen_images(seed)
    body = {name: p for name, p in params.items() if name.startswith("body.")}
    model = cifar.CNN(cifar.SHAPE, 1, width=WIDTH)
    seen = features(model, params_of(model) | body, images)
    if not bool(seen.isfinite().all()):
        raise FloatingPointError("Training diverged: features are not finite.")
    alive = (seen != 0).any(1)  # an image without features has no direction
    found = {"rms": seen.square().mean().sqrt(), "dead_images": 1 - alive.float().mean()}
    seen, labels = seen[alive], labels[alive.numpy()]
    if len(np.unique(labels)) > 1 and not bool((seen == seen[0]).all()):
        found["effective_rank"] = effective_rank(seen)
        for name, centre in (("", False), ("centred_", True)):
            similarity = class_similarity(seen, labels, centre=centre)
            found[f"{name}within"], found[f"{name}between"] = similarity[:2]
    return {"features": {name: round(float(value), 4) for name, value in found.items()}}


def fitted(run: Run, state: Params, clients: ClientData, model: nn.Module) -> dict:
    """Say how well the model fits its training clients, and how well the others' label orders."""
    seen = cifar.featured(state, clients, width=WIDTH)
    own = any(name.startswith("own.") for name in state)
    heads = [
        {n: state[f"own.head.{n}"][i] if own else state[f"head.{n}"] for n in ("weight", "bias")}
        for i in range(clients.num_clients if own else 1)
    ]
    each = heads if own else heads[0]
    row = {m: evaluate(model.head, each, seen, metric=m).mean() for m in ("accuracy", "loss")}
    if run.federation.regime in ("private", "balanced") and not own:
        shared = run.federation._replace(regime="shared")
        classes = cifar.training_clients(shared, run.seed).targets.numpy()  # of the same images
        predicted = nn.functional.linear(seen.inputs, *each.values()).argmax(1).numpy()
        labels = clients.targets.numpy()
        row["others_labels"] = agreement(predicted, labels, classes, clients.sizes)
        row["others_labels_if_fitted"] = agreement(labels, labels, classes, clients.sizes)
        row["others_labels_by_chance"] = 1 / run.federation.classes
    return {name: round(float(value), 4) for name, value in row.items()}


def agreement(
    predicted: np.ndarray, labels: np.ndarray, classes: np.ndarray, sizes: np.ndarray
) -> float:
    """Return how often a prediction is what another client that holds the image's class calls it.

    Mean over those clients, and over the images whose class another client holds.

    Args:
        predicted: a label for each image, client 0's first.
        labels: its client's own label for it.
        classes: its class.
        sizes: images per client.
    """
    client = np.repeat(np.arange(len(sizes)), sizes)
    held = np.unique(np.stack([client, classes, labels]), axis=1)
    votes = np.zeros((classes.max() + 1, max(labels.max(), predicted.max()) + 1))
    np.add.at(votes, (held[1], held[2]), 1)
    others = votes.sum(1)[classes] - 1
    same = votes[classes, predicted] - (predicted == labels)
    return float((same[others > 0] / others[others > 0]).mean())


# ------------------------------------------------------------------------------- the workshop


def points_of(run: Run, until: int) -> list[int]:
    """Return the points at which a run is scored."""
    if run.variant == "untrained":
        return [0]
    last = min(until, POINTS[-1]) if run.variant == "cooled" else until
    return [p for p in [*POINTS, *(POINTS[-1] * 2**i for i in range(1, 5))] if p <= last]


def rows_of(run: Run, folder: Path) -> list[dict]:
    """Return what is finished of a run."""
    return list(entries(folder / run.name / "rows.jsonl"))


def all_rows(folder: Path) -> list[dict]:
    """Return all rows of all runs."""
    return [row for file in sorted(folder.glob("*/rows.jsonl")) for row in entries(file)]


def left(run: Run, rows: Sequence[dict], until: int) -> list[int]:
    """Return the points that a run still lacks; none if it diverged."""
    if any("diverged" in row for row in rows):
        return []
    return [p for p in points_of(run, until) if p not in {row["steps"] for row in rows}]


@contextmanager
def claimed(run: Run, folder: Path) -> Iterator[bool]:
    """Say whether no other process works on a run, and hold it: until this process ends, at most.

    The system gives up a lock with its process, however that ends.
    """
    (folder / run.name).mkdir(parents=True, exist_ok=True)
    with (folder / run.name / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def carry_on(run: Run, folder: Path, until: int, commit: str) -> None:
    """Train and score a run from where it is to its last point, a row at a time.

    A process may end at any moment. A run goes on from its checkpoint; parameters at each point
    are kept, so that they can be scored once more.
    """
    home = folder / run.name
    regime = run.federation._replace(regime="shared") if run.variant == "untrained" else None
    model = cifar.model_for(regime or run.federation, run.seed, width=WIDTH)
    clients = clients_of(run) if regime is None else None
    for steps in left(run, rows_of(run, folder), until):
        row, kept = run.fields | {"steps": steps}, home / f"{steps}.safetensors"
        began, started = time.process_time(), time.monotonic()
        try:
            if not kept.exists():
                state = train(run, steps, clients, model, home / "run.safetensors")
                new = kept.with_suffix(".new")
                save_file({name: p.contiguous() for name, p in state.items()}, new)
                os.replace(new, kept)
            trained = time.process_time()
            state = {name: p.clone() for name, p in load_file(kept).items()}
            row |= score(run, steps, state, clients, model)
        except FloatingPointError as error:
            row["diverged"], trained = str(error), time.process_time()
        row |= {
            "train_seconds": round(trained - began, 1),
            "score_seconds": round(time.process_time() - trained, 1),
            "wall_seconds": round(time.monotonic() - started, 1),
            "commit": commit,
        }
        append(home / "rows.jsonl", row)
        print(time.strftime("%H:%M:%S"), run.name, steps, summary(row), flush=True)
        if "diverged" in row:
            break


def append(path: Path, row: dict) -> None:
    """Add a line to a file, whose last one may be torn."""
    torn = path.exists() and not f"\n{path.read_text()}".endswith("\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(row) + "\n")


def summary(row: dict) -> str:
    """Return a row's main numbers as text: head and probe of each kind, and the time."""
    if "diverged" in row:
        return row["diverged"]
    parts = [
        f"{part} " + " ".join(f"{row[part][kind][best(row, part)] or 0:.3f}" for kind in KINDS)
        for part in ("head", "probe")
    ]
    fit = f"fit {row['training']['accuracy']:.3f}" if "training" in row else ""
    return "  ".join([*parts, fit, f"{row['train_seconds']:.0f}+{row['score_seconds']:.0f} s"])


def work(folder: Path, until: int, runs: Collection[Run] | None = None) -> list[Run]:
    """Carry on one run after the other until none is left for this process; return what failed.

    Several processes may work side by side, each with one thread.
    """
    torch.set_num_threads(1)
    commit = commit_of()
    failed = []
    while True:
        for run in plan(all_rows(folder)) if runs is None else runs:
            if run in failed or not left(run, rows_of(run, folder), until):
                continue
            with claimed(run, folder) as mine:
                if mine and left(run, rows_of(run, folder), until):
                    try:
                        carry_on(run, folder, until, commit)
                    except Exception:  # one control's fault shall not stop the rest
                        traceback.print_exc()
                        failed.append(run)
                    break  # what is done may tell what comes next
        else:
            return failed


def status(folder: Path, until: int) -> str:
    """Return the queue as text, a line per run, and how long what is left may take."""
    rows = all_rows(folder)
    per_step, per_point = {}, np.mean([row["score_seconds"] for row in rows] or [0.0])
    for row in rows:
        before = max([p for p in [0, *POINTS] if p < row["steps"]], default=0)
        per_step.setdefault((row["variant"], row["local_steps"]), []).append(
            row["train_seconds"] / max(1, row["steps"] - before)
        )
    usual = max([np.median(each) for each in per_step.values()], default=0.0)
    lines, counts, seconds = [], {"done": 0, "running": 0, "begun": 0, "to do": 0}, 0.0
    for run in plan(rows):
        own = rows_of(run, folder)
        missing = left(run, own, until)
        state = "done" if not missing else "begun" if own else "to do"
        if missing and (folder / run.name).exists():
            with claimed(run, folder) as free:
                state = state if free else "running"
        reached = max([row["steps"] for row in own], default=0)
        if missing:
            each = per_step.get((run.variant, run.local_steps))
            step = np.median(each) if each else usual
            seconds += step * (missing[-1] - reached) + per_point * len(missing)
        counts[state] += 1
        ended = "diverged" if any("diverged" in row for row in own) else f"{reached:>6}"
        lines.append(f"{state:>8} {ended} {run.name}")
    known = ", ".join(f"{number} {state}" for state, number in counts.items())
    hours = f"{seconds / 3600:.1f} hours of a core" if rows else "unknown time"
    return "\n".join([*lines, f"{known}; left: {hours}, and what tuning will ask for"])


def table(folder: Path, output: Path) -> None:
    """Store all rows that are there as ``output/long_run.json``."""
    place = {run.name: n for n, run in enumerate(plan(all_rows(folder)))}
    rows = sorted(
        all_rows(folder),
        key=lambda row: (place.get(_name(row), len(place)), _name(row), row["steps"]),
    )
    commits = sorted({row.pop("commit") for row in rows})
    how = provenance(
        "python -m studies long_run",
        seeds=sorted({row["seed"] for row in rows}),
        wall_seconds=sum(row["wall_seconds"] for row in rows),
        commit=", ".join(commits),
    )
    how["compute_seconds"] = round(sum(r["train_seconds"] + r["score_seconds"] for r in rows))
    design = {
        "points": POINTS,
        "tuning_seeds": TUNING_SEEDS,
        "grid": {str(tau): lrs for tau, lrs in GRID.items()},
        "horizons": HORIZONS,
        "head": cifar.HEAD | {"lrs": HEAD_LRS},
        "all": cifar.ALL | {"lrs": ALL_LRS, "points": ALL_POINTS},
        "probe": {"strengths": STRENGTHS},
        "budget": BUDGET,
        "width": WIDTH,
        "weight_decay": DECAY,
        "head_steps": HEAD_STEPS,
    }
    save_result(output / "long_run.json", {"design": design, "rows": rows, "provenance": how})


def _name(row: dict) -> str:
    federation = Federation(*row["federation"])
    return Run(federation, *(row[field] for field in Run._fields[1:])).name


def main(arguments: Sequence[str]) -> None:
    """Work through the queue, show it, or store the table."""
    parser = argparse.ArgumentParser(prog="python -m studies long_run", description=main.__doc__)
    parser.add_argument(
        "task",
        nargs="?",
        default="work",
        choices=["work", "list", "table"],
        help="work: carry on the runs, one after the other; start one such process per core",
    )
    parser.add_argument("--until", type=int, default=POINTS[-1], help="last point, 64000 say")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of runs and their rows")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    if options.task == "list":
        print(status(options.folder, options.until))
    elif options.task == "table":
        table(options.folder, options.output)
    elif failed := work(options.folder, options.until):
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}")
    else:
        table(options.folder, options.output)  # as every study does
