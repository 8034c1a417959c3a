"""Studies that tune every setting alike, then run the final seeds: the tables of Part III.

A setting is a dict of plain values:

- ``federation``: the fields of a ``Federation``; or one of two regimes that are no federation:
  "pooled", all images of the 20-class clients held by one; "untrained", a body as it was drawn;
- ``local_steps``; ``matching``: "steps", as many gradient steps in a run as FedAvg's, or "rounds";
- where they differ: ``cohort_size``, ``batch_size``, ``num_rounds``, ``server_lr``; ``images`` per
  client and their ``data`` set; ``width`` of the CNN or another ``network``;
- ``algorithm``, a name and its constants, if it is not FedAvg: ``["fedprox", mu]``,
  ``["per_fedavg", inner_lr]``, ``["fedrep", head_steps]``, ``["scaffold"]``, ``["local"]``, which
  trains on the first client alone.

A new table is a file with a ``TuningStudy``, a dozen lines (``transfer.py``). A new algorithm is a
line in ``STEPS`` if it is FedAvg with another local rule, else a case in ``_train``; a new data set
or network is a file of your own (``federations.py``).
"""

__all__ = [
    "TuningStudy",
    "around",
    "choose",
    "config_of",
    "mean_head",
    "only",
    "rounded_mean",
    "trained",
]

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from fedlib._checks import check_in
from fedlib.clients import ClientData
from fedlib.fedavg import FedAvgConfig, History, run_fedavg
from fedlib.fedrep import run_fedrep
from fedlib.models import CNN, Params, params_of
from fedlib.rules import per_fedavg, proximal, sgd
from fedlib.scaffold import run_scaffold
from fedlib.stored import MOST_STEPS
from studies import federations
from studies.federations import Federation, adapt_all, adapt_heads, new_clients
from studies.reach import digest
from studies.record import ROOT, commit_of, provenance, save_result
from studies.runner import Runner

ROUNDS, COHORT_SIZE, BATCH_SIZE = 40, 10, 10
"""FedAvg's rounds with the most local steps; their product with the cohort is a run's budget."""

TUNING_SEED = 100
STEP_SIZES = [0.05 * 2.0**power for power in range(-7, 9)]
HEAD_LRS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
ALL_LRS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
SCRATCH = dict(steps=400)
BUDGET = 20
"""Images per class with which step sizes are chosen."""

STEPS = {"fedprox": proximal, "per_fedavg": per_fedavg}
"""Algorithms that are FedAvg with a step of their own."""

RUNS = ROOT / "_build" / "runs"
"""Trained parameters are kept here, so that no study trains what another has."""


class TuningStudy(NamedTuple):
    """A table to be computed.

    Attributes:
        name: of the result, which is stored as ``NAME.json``.
        settings: what is compared.
        starts: for each setting, the client step sizes to be tried first, of ``STEP_SIZES``; or
            None for an untrained body. By default, three around 0.1.
        core: how many settings, the first ones, go through everything before the others begin; by
            default all.
        seeds: of the final runs; none of them is used for tuning.
        parts: what new clients fine-tune: "head" and perhaps "all".
        curves: whether to score along the way too, for the first seed.
        variant_of: what a setting is a variant of; of all variants of one thing, only the best on
            validation clients goes on to the final seeds. By default, each is a thing of its own.
        further: further tables, ``(chosen, seeds, run) -> dict``.
        scoring: how new clients are scored, where that is not as in Chapter 12: ``budgets``, the
            images per class; ``budget``, the one that step sizes are chosen with.
        command: what computes the table, for its record.
    """

    name: str
    settings: Sequence[dict]
    starts: Sequence[Sequence[float] | None] | None = None
    core: int | None = None
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    parts: Sequence[str] = ("head",)
    curves: bool = False
    variant_of: Callable[[dict], object] = str
    further: Callable[..., dict] = lambda chosen, seeds, run: {}
    scoring: Mapping[str, object] = {}
    command: str = ""

    def design(self) -> dict:
        """Return the constants behind the table."""
        return {
            "rounds": ROUNDS,
            "head": federations.HEAD,
            "all": federations.ALL,
            "scratch": SCRATCH,
            "head_lrs": HEAD_LRS,
            "all_lrs": ALL_LRS,
            "width": federations.WIDTH,
            "tuning_seed": TUNING_SEED,
        } | self.scoring

    def run(self, output: Path, workers: int) -> Path:
        """Tune, choose, run the final seeds one after the other, storing after each.

        A run that was stopped leaves a table of what was finished, and goes on from there. As long
        as the stored table has more rows, what is finished is beside it, in ``NAME.partial.json``.

        Returns:
            The table's file.
        """
        file, partial = (output / f"{self.name}{end}" for end in (".json", ".partial.json"))
        began, commit = time.monotonic(), commit_of()
        starts = self.starts or [around(0.1)] * len(self.settings)
        cache, brought = output / f"{self.name}.partial.jsonl", [*map(code_of, self.settings)]
        run = Runner(cache, workers, self._planned(starts), brought)
        tuning, chosen, finals, used, further = [], [], [], [], {}
        for part in (slice(self.core), slice(self.core or len(self.settings), None)):
            searched = self._search(self.settings[part], starts[part], run)
            picked = self._choose(searched, run)
            tuning, chosen = tuning + searched, chosen + picked
            for seed in self.seeds if picked else ():
                finals += self._final(picked, seed, run)
                used = sorted({*used, seed})
                further = self.further(chosen, used, run)
                source = provenance(
                    self.command or f"python -m studies {self.name}",
                    seeds=[TUNING_SEED, *used],
                    wall_seconds=time.monotonic() - began,
                    commit=commit,
                )
                source["compute_seconds"] = run.seconds
                record = {"design": self.design(), "tuning": tuning, "chosen": chosen}
                record |= {"final": finals, "provenance": source}
                if _num_rows(file) > len(finals):
                    save_result(partial, record | further)
                else:
                    save_result(file, record | further)
                    partial.unlink(missing_ok=True)
        if partial.exists():  # the whole has fewer rows than the table before
            os.replace(partial, file)
        return file

    def _planned(self, starts: Sequence[Sequence[float] | None]) -> dict[str, int]:
        """Return how many units there will be; a search takes a step or so beyond its start."""
        things = len({self.variant_of(setting) for setting in self.settings})
        return {
            "tune": sum(1 if start is None else len(start) + 1 for start in starts),
            "tune_fine_tuning": things,
            "final": things * len(self.seeds),
        }

    def _choose(self, tuning: list[dict], run: Callable[..., list[dict]]) -> list[dict]:
        """Choose client step sizes and among variants, then fine-tuning step sizes."""
        variants = {}
        for entry in tuning:
            scores = {lr: _best(by_head_lr) for lr, by_head_lr in entry["tried"].items()}
            variants.setdefault(self.variant_of(entry["setting"]), []).append(
                (entry["setting"], scores)
            )
        chosen = []
        for alike in variants.values():
            setting, scores = max(alike, key=lambda pair: _best(pair[1]) or 0.0)
            best, _ = choose(scores)
            chosen.append({"setting": setting, "client_lr": best and float(best)})
        units = [entry | {"parts": list(self.parts), **self.scoring} for entry in chosen]
        fine_tuning = run(tune_fine_tuning, units, label="fine-tuning")
        for entry, tried in zip(chosen, fine_tuning, strict=True):
            entry["tried"] = tried
            entry["lrs"] = {
                part: {budget: float(choose(scores)[0]) for budget, scores in by_budget.items()}
                for part, by_budget in tried.items()
            }
        return chosen

    def _final(self, chosen: list[dict], seed: int, run: Callable[..., list[dict]]) -> list[dict]:
        units = [
            {name: entry[name] for name in ("setting", "client_lr", "lrs")}
            | {"seed": seed, "curve": self.curves and seed == self.seeds[0]}
            | self.scoring
            for entry in chosen
        ]
        results = run(final, units, label=f"seed {seed}")
        return [
            {"setting": unit["setting"], "seed": seed} | result
            for unit, result in zip(units, results, strict=True)
        ]

    def _search(
        self,
        settings: Sequence[dict],
        starts: Sequence[Sequence[float] | None],
        run: Callable[..., list[dict]],
    ) -> list[dict]:
        """Try client step sizes until every setting's best has a neighbour on either side.

        While all diverge, smaller ones are tried. ``STEP_SIZES`` is the limit.
        """
        budget = {name: value for name, value in self.scoring.items() if name == "budget"}
        tried = [{} for _ in settings]
        wanted = {i: [None] if start is None else list(start) for i, start in enumerate(starts)}
        while wanted:
            units = [
                dict(setting=settings[i], client_lr=lr, **budget)
                for i, lrs in wanted.items()
                for lr in lrs
            ]
            places = [i for i, lrs in wanted.items() for _ in lrs]
            results = run(tune, units, label="tuning")
            for i, unit, scores in zip(places, units, results, strict=True):
                tried[i][unit["client_lr"]] = scores
            wanted = {}
            for i, by_lr in enumerate(tried):
                if None in by_lr:
                    continue
                scores = {str(lr): _best(by_head_lr) for lr, by_head_lr in by_lr.items()}
                best, inside = (min(by_lr), False) if _best(scores) is None else choose(scores)
                at = STEP_SIZES.index(float(best)) + (-1 if float(best) == min(by_lr) else 1)
                if not inside and 0 <= at < len(STEP_SIZES):
                    wanted[i] = [STEP_SIZES[at]]
        return [
            {"setting": setting, "tried": {str(lr): by_lr[lr] for lr in sorted(by_lr)}}
            if None not in by_lr
            else {"setting": setting, "tried": {}}
            for setting, by_lr in zip(settings, tried, strict=True)
        ]


def around(client_lr: float) -> list[float]:
    """Return the step size that is nearest to a first guess, with its two neighbours.

    At an end of ``STEP_SIZES``, the three there.
    """
    nearest = int(np.argmin(np.abs(np.array(STEP_SIZES) - client_lr)))
    first = min(max(nearest - 1, 0), len(STEP_SIZES) - 3)
    return STEP_SIZES[first : first + 3]


def config_of(setting: Mapping, client_lr: float) -> FedAvgConfig:
    """Return the configuration of a run."""
    tau, cohort_size = setting["local_steps"], setting.get("cohort_size", COHORT_SIZE)
    budget = ROUNDS * MOST_STEPS * COHORT_SIZE
    same_rounds = setting["matching"] == "rounds"
    num_rounds = ROUNDS if same_rounds else budget // (tau * cohort_size)
    pooled = setting["federation"][0] == "pooled"
    alone = pooled or setting.get("algorithm") == ["local"]
    batch_size = setting.get("batch_size", BATCH_SIZE)
    return FedAvgConfig(
        num_rounds=setting.get("num_rounds", num_rounds),
        local_steps=tau,
        cohort_size=1 if alone else cohort_size,
        batch_size=cohort_size * batch_size if pooled else batch_size,  # as all of a cohort's
        client_lr=client_lr,
        server_lr=setting.get("server_lr", 1.0),
    )


def trained(
    setting: dict, client_lr: float | None, seed: int, **options
) -> tuple[Params, dict[str, list]]:
    """Train, or take what was trained before; return parameters and the series of metrics.

    What was trained before is the same run if its setting, seed, network, initial weights and the
    code that trains it are. Without a step size, the untrained parameters.
    """
    if client_lr is None:
        untrained = federations.model_for(Federation("shared", 80), seed, **network(setting))
        return params_of(untrained), {}
    config = config_of(setting, client_lr)
    federation = Federation(*setting["federation"])
    if federation.regime == "pooled":
        federation = Federation("shared", 20)
    model = federations.model_for(federation, seed, **network(setting))
    file = RUNS / f"{_name(setting, config, seed, model)}.safetensors"
    if file.exists() and not options:
        return load_file(file), {}
    clients = clients_of(setting, federation, seed)
    params, history = _train(setting, config, seed, model, clients, **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    save_file(params, temporary)
    os.replace(temporary, file)
    return params, {"round_num": history.round_num.tolist()} | {
        name: values.tolist() for name, values in history.metrics.items()
    }


def _name(setting: Mapping, config: FedAvgConfig, seed: int, model: nn.Module) -> str:
    """Return what defines a run, as digits: its network's code and weights are part of it."""
    weights = hashlib.sha256()
    for name, p in model.state_dict().items():
        weights.update(f"{name} {tuple(p.shape)} {p.dtype}".encode() + p.numpy().tobytes())
    defined = [setting, astuple(config), seed, repr(model), weights.hexdigest(), code_of(setting)]
    return digest(_train, digest(clients_of), defined)[:16]


def code_of(setting: Mapping) -> str:
    """Return digits of the code that a setting names in files of a reader's own."""
    named = [setting[name] for name in ("network", "data") if ":" in setting.get(name, "")]
    return " ".join(digest(federations.load_named(name)) for name in named)


def clients_of(setting: Mapping, federation: Federation, seed: int) -> ClientData:
    """Return the clients that a run trains on."""
    held = {name: setting[name] for name in ("images", "data") if name in setting}
    clients = federations.training_clients(federation, seed, **held)
    if setting["federation"][0] == "pooled":
        return clients.pool()
    return clients.select([0]) if setting.get("algorithm") == ["local"] else clients


def _train(
    setting: Mapping,
    config: FedAvgConfig,
    seed: int,
    model: nn.Module,
    clients: ClientData,
    **options,
) -> tuple[Params, History]:
    algorithm, *constants = setting.get("algorithm", ["fedavg"])
    check_in("algorithm", algorithm, ["fedavg", "local", *STEPS, "fedrep", "scaffold"])
    # Compiling pays for itself in long runs; and what a reader brings need not compile.
    compiles = config.local_steps > 1 and isinstance(model, CNN) and "num_rounds" not in setting
    strategy = "compiled" if compiles else "auto"
    options = dict(strategy=strategy, progress=False, seed=seed) | options
    if algorithm == "fedrep":
        params, history, _ = run_fedrep(model, clients, config, head_steps=constants[0], **options)
        return params, history
    if algorithm == "scaffold":
        return run_scaffold(model, clients, config, **options)
    step = STEPS[algorithm](*constants) if algorithm in STEPS else sgd
    return run_fedavg(model, clients, config, step=step, **options)


def tune(setting: dict, client_lr: float | None, *, budget: int = BUDGET) -> dict:
    """Train with one step size; score validation clients' heads for each fine-tuning step size."""
    try:
        params, _ = trained(setting, client_lr, TUNING_SEED)
    except FloatingPointError:
        return {str(lr): None for lr in HEAD_LRS}
    task, net = _new_clients("validation", TUNING_SEED, setting), network(setting)
    scores = adapt_heads(params, task, {budget: HEAD_LRS}, TUNING_SEED, **net)[budget]
    return {str(lr): rounded_mean(accuracies) for lr, accuracies in scores.items()}


def tune_fine_tuning(
    setting: dict,
    client_lr: float | None,
    parts: Sequence[str],
    *,
    budgets: Sequence[int] = federations.BUDGETS,
    budget: int = BUDGET,
) -> dict:
    """Try fine-tuning step sizes on a trained body; return ``{part: {budget: {lr: accuracy}}}``."""
    # Cannot diverge: this very run gave the step size its score, or it would not have been chosen.
    params, _ = trained(setting, client_lr, TUNING_SEED)
    task, net = _new_clients("validation", TUNING_SEED, setting), network(setting)
    heads = dict.fromkeys(budgets, HEAD_LRS)
    tried = {"head": adapt_heads(params, task, heads, TUNING_SEED, **net)}
    for part, how in _whole(parts, client_lr).items():
        few, lrs = task.of_first(5), {budget: ALL_LRS}
        tried[part] = adapt_all(params, few, lrs, TUNING_SEED, fine_tuning=how, **net)
    return {
        part: {
            str(each): {str(lr): rounded_mean(a) for lr, a in scores.items()}
            for each, scores in by_budget.items()
        }
        for part, by_budget in tried.items()
    }


def final(
    setting: dict,
    client_lr: float | None,
    lrs: dict,
    seed: int,
    curve: bool,
    *,
    budgets: Sequence[int] = federations.BUDGETS,
    budget: int = BUDGET,
) -> dict:
    """Train with the chosen step sizes; fine-tune new clients of every kind.

    ``lrs`` are the fine-tuning step sizes, ``{part: {budget: lr}}``.
    """
    unseen, net = _new_clients("unseen", seed, setting), network(setting)
    heads = {int(each): [lr] for each, lr in lrs["head"].items()}
    options = {}

    def along(params: Params) -> dict[str, float]:
        scores = adapt_heads(params, unseen, {budget: heads[budget]}, seed, **net)
        accuracy = rounded_mean(only(scores[budget]))
        return {"accuracy": np.nan if accuracy is None else accuracy}

    if curve and client_lr is not None and setting["matching"] == "steps":
        rounds = config_of(setting, client_lr).num_rounds
        options = dict(metrics=along, eval_every=max(1, rounds // 8))
    try:
        params, series = trained(setting, client_lr, seed, **options)
    except FloatingPointError as error:
        return {"diverged": str(error)}
    # JSON has no NaN: a point where fine-tuning diverged is stored as null.
    series = {n: [None if np.isnan(v) else round(v, 4) for v in s] for n, s in series.items()}
    result = {"curve": series} | {part: {} for part in lrs}
    for kind in federations.kinds_of(setting.get("data", "cifar100")):
        task = unseen if kind == "unseen" else _new_clients(kind, seed, setting)
        scores = adapt_heads(params, task, heads, seed, **net)
        result["head"][kind] = {str(each): only(by_lr) for each, by_lr in scores.items()}
        asked = budgets if kind == "unseen" else (budget,)
        for part, how in _whole(lrs, client_lr).items():
            tried = {each: [lrs[part][str(budget)]] for each in asked}
            few = task.of_first(5)
            scores = adapt_all(params, few, tried, seed, fine_tuning=how, **net)
            result[part][kind] = {str(each): only(by_lr) for each, by_lr in scores.items()}
    return result


def mean_head(setting: dict, client_lr: float, federation: Sequence, seed: int) -> dict:
    """Return singular values of a federation's mean head and of a client's, on a trained body."""
    clients = federations.training_clients(Federation(*federation), seed)
    try:
        params, _ = trained(setting, client_lr, seed)
        values = federations.head_spectrum(params, clients, seed)
    except FloatingPointError as error:
        return {"diverged": str(error)}
    return {name: [round(v, 4) for v in series[:20]] for name, series in values.items()}


def choose(tried: Mapping[str, float | None]) -> tuple[str | None, bool]:
    """Return the best entry's key, and whether smaller and larger step sizes were tried too.

    Raises:
        ValueError: if all that was tried diverged.
    """
    if not tried:
        return None, True
    order = sorted(tried, key=float)
    if _best(tried) is None:
        raise ValueError(
            f"Invalid tried={order}: with every one, training or fine-tuning diverged. "
            "Add smaller step sizes to STEP_SIZES, HEAD_LRS or ALL_LRS."
        )
    best = max(order, key=lambda lr: -1.0 if tried[lr] is None else tried[lr])
    return best, best not in (order[0], order[-1])


def _num_rows(file: Path) -> int:
    return len(json.loads(file.read_text())["final"]) if file.exists() else 0


def _whole(parts: Collection[str], client_lr: float | None) -> dict[str, dict]:
    """Return options for each way of training all layers; from scratch, if the body is random."""
    if "all" not in parts:
        return {}
    return {"all": {}} | ({"scratch": SCRATCH} if client_lr is None else {})


def network(setting: Mapping) -> dict:
    """Return what a setting says of its network, as ``federations.build`` takes it."""
    return {name: setting[name] for name in ("width", "network", "data") if name in setting}


def _new_clients(kind: str, seed: int, setting: Mapping) -> federations.Task:
    return new_clients(kind, seed, data=setting.get("data", "cifar100"))


def _best(scores: Mapping[str, float | None]) -> float | None:
    return max((a for a in scores.values() if a is not None), default=None)


def rounded_mean(accuracies: Sequence[float] | None) -> float | None:
    """Return the mean over clients to four digits; None where fine-tuning diverged."""
    return None if accuracies is None else round(float(np.mean(accuracies)), 4)


def only(by_lr: Mapping[float, list[float] | None]) -> list[float] | None:
    """Return the accuracies of the only step size, to three digits; None where it diverged."""
    (accuracies,) = by_lr.values()
    return accuracies and [round(a, 3) for a in accuracies]
