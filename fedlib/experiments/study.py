"""What the studies of Part III have in common: tune every setting alike, then run the final seeds.

A setting is a dict of plain values:

- ``federation``: the fields of a ``Federation``; or one of two regimes that are no federation:
  "pooled", all images of the 20-class clients held by one; "untrained", a body as it was drawn;
- ``local_steps``; ``matching``: "steps", as many gradient steps in a run as FedAvg's, or "rounds";
- where they differ: ``cohort_size``, ``server_lr``, ``width``;
- ``algorithm``, a name and its constants, if it is not FedAvg: ``["fedprox", mu]``,
  ``["per_fedavg", inner_lr]``, ``["fedrep", head_steps]``, ``["scaffold"]``, ``["local"]``, which
  trains on the first client alone.
"""

__all__ = [
    "Study",
    "around",
    "choose",
    "config_of",
    "mean_head",
    "only",
    "rounded_mean",
    "trained",
]

import functools
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file

from fedlib._checks import check_in
from fedlib.experiments import cifar
from fedlib.experiments.cifar import Federation, adapt_all, adapt_heads, new_clients
from fedlib.experiments.store import (
    cache_of,
    commit_of,
    compute_seconds,
    digest,
    provenance,
    run_units,
    save_result,
)
from fedlib.fedavg import FedAvgConfig, History, run_fedavg
from fedlib.fedrep import run_fedrep
from fedlib.models import Params, params_of
from fedlib.rules import per_fedavg, proximal, sgd
from fedlib.scaffold import run_scaffold

ROUNDS, MOST_STEPS, COHORT_SIZE, BATCH_SIZE = 40, 50, 10, 10
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

RUNS = Path("_build/runs")
"""Trained parameters are kept here, so that no study trains what another has."""


class Study(NamedTuple):
    """A table to be computed.

    Attributes:
        name: of the result, which is stored as ``NAME.json``.
        settings: what is compared.
        starts: for each setting, the client step sizes to be tried first, of ``STEP_SIZES``; or
            None for an untrained body.
        core: how many settings, the first ones, go through everything before the others begin.
        seeds: of the final runs; none of them is used for tuning.
        parts: what new clients fine-tune: "head" and perhaps "all".
        curves: whether to score along the way too, for the first seed.
        variant_of: what a setting is a variant of; of all variants of one thing, only the best on
            validation clients goes on to the final seeds. By default, each is a thing of its own.
        more: further tables, ``(chosen, seeds, run) -> dict``.
    """

    name: str
    settings: Sequence[dict]
    starts: Sequence[Sequence[float] | None]
    core: int
    seeds: Sequence[int]
    parts: Sequence[str] = ("head",)
    curves: bool = False
    variant_of: Callable[[dict], object] = str
    more: Callable[..., dict] = lambda chosen, seeds, run: {}

    def design(self) -> dict:
        """Return the constants behind the table."""
        return {
            "rounds": ROUNDS,
            "head": cifar.HEAD,
            "all": cifar.ALL,
            "scratch": SCRATCH,
            "head_lrs": HEAD_LRS,
            "all_lrs": ALL_LRS,
            "width": cifar.WIDTH,
            "tuning_seed": TUNING_SEED,
        }

    def run(self, output: Path, workers: int) -> None:
        """Tune, choose, run the final seeds one after the other, storing after each.

        A run that was stopped leaves a table of what was finished, and goes on from there. As long
        as the stored table has more rows, what is finished is beside it, in ``NAME.partial.json``.
        """
        file, partial = (output / f"{self.name}{end}" for end in (".json", ".partial.json"))
        began, commit = time.monotonic(), commit_of()
        cache = cache_of(output, self.name, self.design(), file=__file__)
        run = functools.partial(run_units, cache=cache, workers=workers)
        tuning, chosen, finals, used, more = [], [], [], [], {}
        for some in (slice(self.core), slice(self.core, None)):
            searched = self._search(self.settings[some], self.starts[some], run)
            picked = self._choose(searched, run)
            tuning, chosen = tuning + searched, chosen + picked
            for seed in self.seeds if picked else ():
                finals += self._final(picked, seed, run)
                used = sorted({*used, seed})
                more = self.more(chosen, used, run)
                how = provenance(
                    self.name,
                    seeds=[TUNING_SEED, *used],
                    wall_seconds=time.monotonic() - began,
                    commit=commit,
                )
                how["compute_seconds"] = compute_seconds(cache)
                record = {"design": self.design(), "tuning": tuning, "chosen": chosen}
                record |= {"final": finals, "provenance": how}
                if _num_rows(file) > len(finals):
                    save_result(partial, record | more)
                else:
                    save_result(file, record | more)
                    partial.unlink(missing_ok=True)
        if partial.exists():  # the whole has fewer rows than the table before
            os.replace(partial, file)

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
        units = [entry | {"parts": list(self.parts)} for entry in chosen]
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
            for entry in chosen
        ]
        results = run(final, units, label=f"seed {seed}")
        return [
            {"setting": unit["setting"], "seed": seed} | result
            for unit, result in zip(units, results, strict=True)
        ]

    @staticmethod
    def _search(
        settings: Sequence[dict],
        starts: Sequence[Sequence[float] | None],
        run: Callable[..., list[dict]],
    ) -> list[dict]:
        """Try client step sizes until every setting's best has a neighbour on either side.

        While all diverge, smaller ones are tried. ``STEP_SIZES`` is the limit.
        """
        tried = [{} for _ in settings]
        wanted = {i: [None] if start is None else list(start) for i, start in enumerate(starts)}
        while wanted:
            units = [
                dict(setting=settings[i], client_lr=lr) for i, lrs in wanted.items() for lr in lrs
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
    pooled = setting["federation"][0] == "pooled"
    alone = pooled or setting.get("algorithm") == ["local"]
    return FedAvgConfig(
        num_rounds=ROUNDS if setting["matching"] == "rounds" else budget // (tau * cohort_size),
        local_steps=tau,
        cohort_size=1 if alone else cohort_size,
        batch_size=COHORT_SIZE * BATCH_SIZE if pooled else BATCH_SIZE,  # as all of a cohort's
        client_lr=client_lr,
        server_lr=setting.get("server_lr", 1.0),
    )


def trained(
    setting: dict, client_lr: float | None, seed: int, **options
) -> tuple[Params, dict[str, list]]:
    """Train, or take what was trained before; return parameters and the series of metrics.

    Without a step size, the untrained parameters.
    """
    width = setting.get("width", cifar.WIDTH)
    if client_lr is None:
        return params_of(cifar.model_for(Federation("shared", 80), seed, width=width)), {}
    config = config_of(setting, client_lr)
    key = digest([setting, repr(config), seed], file=__file__)
    file = RUNS / f"{key[:16]}.safetensors"
    if file.exists() and not options:
        return load_file(file), {}
    params, history = _train(setting, config, seed, width=width, **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    save_file(params, temporary)
    os.replace(temporary, file)
    return params, {"round_num": history.round_num.tolist()} | {
        name: values.tolist() for name, values in history.metrics.items()
    }


def _train(
    setting: Mapping, config: FedAvgConfig, seed: int, *, width: int, **options
) -> tuple[Params, History]:
    federation = Federation(*setting["federation"])
    pooled = federation.regime == "pooled"
    if pooled:
        federation = Federation("shared", 20)
    algorithm, *constants = setting.get("algorithm", ["fedavg"])
    check_in("algorithm", algorithm, ["fedavg", "local", *STEPS, "fedrep", "scaffold"])
    clients = cifar.training_clients(federation, seed)
    if pooled:
        clients = clients.pool()
    if algorithm == "local":
        clients = clients.select([0])
    model = cifar.model_for(federation, seed, width=width)
    strategy = "auto" if config.local_steps == 1 else "compiled"
    options = dict(strategy=strategy, progress=False, seed=seed) | options
    if algorithm == "fedrep":
        params, history, _ = run_fedrep(model, clients, config, head_steps=constants[0], **options)
        return params, history
    if algorithm == "scaffold":
        return run_scaffold(model, clients, config, **options)
    step = STEPS[algorithm](*constants) if algorithm in STEPS else sgd
    return run_fedavg(model, clients, config, step=step, **options)


def tune(setting: dict, client_lr: float | None) -> dict:
    """Train with one step size; score validation clients' heads for each fine-tuning step size."""
    try:
        params, _ = trained(setting, client_lr, TUNING_SEED)
    except FloatingPointError:
        return {str(lr): None for lr in HEAD_LRS}
    task, how = new_clients("validation", TUNING_SEED), _width(setting)
    scores = adapt_heads(params, task, {BUDGET: HEAD_LRS}, TUNING_SEED, **how)[BUDGET]
    return {str(lr): rounded_mean(accuracies) for lr, accuracies in scores.items()}


def tune_fine_tuning(setting: dict, client_lr: float | None, parts: Sequence[str]) -> dict:
    """Try fine-tuning step sizes on a trained body; return ``{part: {budget: {lr: accuracy}}}``."""
    # Cannot diverge: this very run gave the step size its score, or it would not have been chosen.
    params, _ = trained(setting, client_lr, TUNING_SEED)
    task, how = new_clients("validation", TUNING_SEED), _width(setting)
    budgets = dict.fromkeys(cifar.BUDGETS, HEAD_LRS)
    tried = {"head": adapt_heads(params, task, budgets, TUNING_SEED, **how)}
    for part, more in _whole(parts, client_lr).items():
        few = task.of_first(5)
        tried[part] = adapt_all(params, few, {BUDGET: ALL_LRS}, TUNING_SEED, **how, **more)
    return {
        part: {
            str(budget): {str(lr): rounded_mean(a) for lr, a in scores.items()}
            for budget, scores in by_budget.items()
        }
        for part, by_budget in tried.items()
    }


def final(setting: dict, client_lr: float | None, lrs: dict, seed: int, curve: bool) -> dict:
    """Train with the chosen step sizes; fine-tune new clients of every kind.

    ``lrs`` are the fine-tuning step sizes, ``{part: {budget: lr}}``.
    """
    unseen, how = new_clients("unseen", seed), _width(setting)
    heads = {int(budget): [lr] for budget, lr in lrs["head"].items()}
    options = {}

    def along(params: Params) -> dict[str, float]:
        scores = adapt_heads(params, unseen, {BUDGET: heads[BUDGET]}, seed, **how)
        accuracy = rounded_mean(only(scores[BUDGET]))
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
    for kind in cifar.KINDS:
        task = unseen if kind == "unseen" else new_clients(kind, seed)
        scores = adapt_heads(params, task, heads, seed, **how)
        result["head"][kind] = {str(budget): only(by_lr) for budget, by_lr in scores.items()}
        budgets = cifar.BUDGETS if kind == "unseen" else (BUDGET,)
        for part, more in _whole(lrs, client_lr).items():
            tried = {budget: [lrs[part][str(BUDGET)]] for budget in budgets}
            scores = adapt_all(params, task.of_first(5), tried, seed, **how, **more)
            result[part][kind] = {str(budget): only(by_lr) for budget, by_lr in scores.items()}
    return result


def mean_head(setting: dict, client_lr: float, federation: Sequence, seed: int) -> dict:
    """Return singular values of a federation's mean head and of a client's, on a trained body."""
    clients = cifar.training_clients(Federation(*federation), seed)
    try:
        params, _ = trained(setting, client_lr, seed)
        values = cifar.head_spectrum(params, clients, seed)
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


def _width(setting: Mapping) -> dict:
    return {"width": setting.get("width", cifar.WIDTH)}


def _best(scores: Mapping[str, float | None]) -> float | None:
    return max((a for a in scores.values() if a is not None), default=None)


def rounded_mean(accuracies: Sequence[float] | None) -> float | None:
    """Return the mean over clients to four digits; None where fine-tuning diverged."""
    return None if accuracies is None else round(float(np.mean(accuracies)), 4)


def only(by_lr: Mapping[float, list[float] | None]) -> list[float] | None:
    """Return the accuracies of the only step size, to three digits; None where it diverged."""
    (accuracies,) = by_lr.values()
    return accuracies and [round(a, 3) for a in accuracies]
