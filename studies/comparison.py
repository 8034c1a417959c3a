"""A comparison of your own: FedAvg against one step, with your classes, local steps, network, data.

``python -m studies one_step --classes 10 --local-steps 25 --quick``, say. Everything that
Chapter 12's table is made with is an argument, and what you leave out is as there: step sizes are
tuned on validation clients, for every setting alike, and what counts are new clients and new seeds.
"""

__all__ = ["add_arguments", "show", "study_of"]

import argparse
import math
import shlex
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from fedlib import plot, stored
from fedlib._checks import check_positive_int, refuse
from fedlib.evaluate import mean_interval
from fedlib.table import table
from studies import federations
from studies.federations import Federation, counts_of, kinds_of
from studies.record import ROOT
from studies.tuning import BATCH_SIZE, BUDGET, COHORT_SIZE, ROUNDS, TuningStudy, around

FOLDER = ROOT / "_build" / "studies"
STEPS, QUICK_STEPS = ROUNDS * stored.MOST_STEPS, 200
"""Gradient steps of each of the cohort's places."""

SEEDS, QUICK_SEEDS = 5, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of a comparison; none of them has a default but None."""
    own = parser.add_argument_group("a comparison of your own")

    def add(name: str, what: str, **options: object) -> None:
        own.add_argument(f"--{name}", help=what, **options)

    number, numbers = dict(type=int, metavar="N"), dict(type=int, nargs="+", metavar="N")
    add("classes", "classes per client; several for several rows (5)", **numbers)
    add("local-steps", "of FedAvg; several for several columns (50)", **numbers)
    add("regime", "labels: shared, private, balanced or groups (shared private)", nargs="+")
    add("clients", "training clients (100, or as many as there are images for)", **number)
    add("images", "of each client (240)", **number)
    add("cohort", "clients per round (10)", **number)
    add("batch", "images per step (10)", **number)
    add("gradient-steps", f"of a run ({STEPS}; quick: about {QUICK_STEPS})", **number)
    add("budget", "images per class that new clients learn from (20)", **number)
    add("network", "CNN, MLP, or FILE.py:NAME, (image_shape, num_outputs, *, seed) -> model")
    add("data", "cifar100, glyphs, or FILE.py:NAME, split -> (images, labels)")
    add("seeds", f"final seeds ({SEEDS}; quick: {QUICK_SEEDS})", **number)
    add("name", "of the result (mine)")
    add("quick", "short runs, to see that all works: no result", action="store_const", const=True)


def study_of(options: argparse.Namespace, command: list[str]) -> TuningStudy:
    """Return the study that arguments ask for.

    Raises:
        ValueError: if an argument cannot be used; the message says what can.
    """

    def number(name: str, usual: int) -> int:
        value = getattr(options, name)
        return usual if value is None else check_positive_int(f"--{name.replace('_', '-')}", value)

    taus = sorted({check_positive_int("--local-steps", t) for t in options.local_steps or [50]})
    taus = [tau for tau in taus if tau > 1]
    if not taus:
        refuse("--local-steps", 1, "one step is what all are compared with", "--local-steps 2")
    steps = number("gradient_steps", _quick_steps(taus) if options.quick else STEPS)
    for tau in taus:
        _check_rounds(tau, steps)
    places = {name: getattr(options, name) for name in ("network", "data")}
    for name, value in places.items():
        if value and ":" in value:  # wherever it is run from, it is the same file
            path, _, wanted = value.rpartition(":")
            places[name] = f"{Path(path).resolve()}:{wanted}"
    places = {name: value for name, value in places.items() if value}
    data = places.get("data", "cifar100")
    images, classes = number("images", federations.IMAGES), options.classes or [5]
    clients = number(
        "clients", max(1, min(100, *(_most_clients(c, images, data) for c in classes)))
    )
    regimes = options.regime or ["shared", "private"]
    held = [_federation(r, C, clients, images, data) for C, r in product(classes, regimes)]
    cohort, batch = number("cohort", COHORT_SIZE), number("batch", BATCH_SIZE)
    if cohort > clients:
        refuse("--cohort", cohort, f"only {clients} clients", f"--cohort {clients} or less")
    if batch > images:
        refuse("--batch", batch, f"a client has {images} images", f"--batch {images} or less")
    budget, most = number("budget", BUDGET), counts_of(data).tune
    if budget > most:
        refuse("--budget", budget, f"new clients have {most} images of a class", f"at most {most}")
    _check_network(places)
    common = dict(cohort_size=cohort, batch_size=batch, images=images) | places
    settings = [stored.UNTRAINED | places] + [
        dict(federation=list(who), local_steps=tau, matching="steps", num_rounds=steps // tau)
        | common
        for who, tau in product(held, [1, *taus])
    ]
    return TuningStudy(
        name=options.name or "mine",
        settings=settings,
        starts=[None, *(around(_usual(setting["local_steps"])) for setting in settings[1:])],
        seeds=range(number("seeds", QUICK_SEEDS if options.quick else SEEDS)),
        scoring=dict(budgets=[budget], budget=budget),
        command=shlex.join(["python", "-m", "studies", "one_step", *command]),
    )


def _usual(local_steps: int) -> float:
    """Return a step size to begin the search with: what was best in Chapter 12, about."""
    return 0.2 if local_steps <= 2 else 0.1 if local_steps <= 10 else 0.05


def _quick_steps(taus: list[int]) -> int:
    all_divide = math.lcm(*taus)
    return max(1, QUICK_STEPS // all_divide) * all_divide


def _check_rounds(tau: int, steps: int) -> None:
    if steps % tau:
        near = sorted({max(1, steps // tau), steps // tau + 1})
        fits = " or ".join(f"{rounds * tau}" for rounds in near)
        why = f"{steps} gradient steps are no whole number of rounds"
        below = max(t for t in range(1, tau) if steps % t == 0)
        refuse("--local-steps", tau, why, f"--gradient-steps {fits}, or --local-steps {below}")


def _check_network(places: dict) -> None:
    model = federations.build(2, **places)
    if not all(isinstance(getattr(model, part, None), nn.Module) for part in ("body", "head")):
        why = "its model has no body and head"
        refuse("--network", places["network"], why, "fedlib.BodyHead(body, head), say")


def _most_clients(classes: int, images: int, data: str) -> int:
    """Return how many clients a data set's images suffice for, each with as many."""
    counts = counts_of(data)
    return (
        counts.train // math.ceil(images / classes) * counts.known // classes if classes > 0 else 1
    )


def _federation(regime: str, classes: int, clients: int, images: int, data: str) -> Federation:
    """Return a federation that can be dealt; refuse what has too few classes or images."""
    counts, classes = counts_of(data), check_positive_int("--classes", classes)
    regimes = ("shared", "private", "balanced", "groups")
    if regime not in regimes:
        refuse("--regime", regime, "no way to give labels", f"one of {', '.join(regimes)}")
    if not 2 <= classes <= counts.known:
        rule = f"training clients hold 2 to {counts.known} classes"
        refuse("--classes", classes, rule, f"--classes {min(max(classes, 2), counts.known)}")
    if images < classes:
        refuse("--images", images, f"fewer than {classes} classes", f"--images {classes} or more")
    holders, each = math.ceil(clients * classes / counts.known), math.ceil(images / classes)
    if holders * each > counts.train:
        fewer, less = _most_clients(classes, images, data), counts.train // holders * classes
        why = f"{holders} clients would share the {counts.train} images of a class, {each} for each"
        remedies = [f"--clients {fewer} or less"] * (fewer > 0) + [f"--images {less} or less"]
        refuse("--classes", classes, f"with {clients} clients, {why}", ", or ".join(remedies))
    return Federation(regime, classes, clients)


def show(study: TuningStudy, file: Path) -> None:
    """Print the table of a finished comparison, and draw it beside its file."""
    record = stored.load_result(file)
    untrained, *settings = study.settings
    budget = study.scoring["budget"]
    kinds = kinds_of(untrained.get("data", "cifar100"))
    rows = {}
    for setting in settings:
        regime, classes, *_ = setting["federation"]
        rows.setdefault(f"{regime}, C = {classes}", []).append(setting)
    taus = [setting["local_steps"] for setting in next(iter(rows.values()))]
    columns = ["untrained", "one step", *(f"τ = {tau}" for tau in taus[1:])]
    fig, axes = plt.subplots(
        1, len(kinds), figsize=(3.2 * len(kinds), 3.2), sharey=True, squeeze=False
    )
    for ax, kind in zip(axes[0], kinds, strict=True):
        asked = dict(kind=kind, budget=budget)
        cells = {
            row: [mean_interval(stored.scores(record, s, **asked)) for s in (untrained, *own)]
            for row, own in rows.items()
        }
        leads = {
            row: [mean_interval(stored.difference(record, s, own[0], **asked)) for s in own[1:]]
            for row, own in rows.items()
        }
        heads = ["", *columns, *(f"τ = {tau} minus one step" for tau in taus[1:])]
        lines = {row: [*cells[row], *leads[row]] for row in rows}
        print(table(lines, heads, caption=f"Accuracy on new clients, {kind}, {budget} per class"))
        print()
        for j, column in enumerate(columns):
            each = [cells[row][j] for row in rows]
            ax.bar(
                np.arange(len(rows)) + 0.8 * (j - (len(columns) - 1) / 2) / len(columns),
                [interval.mean for interval in each],
                width=0.75 / len(columns),
                yerr=[interval.half_width for interval in each],
                color=list(plot.COLORS.values())[j % len(plot.COLORS)],
                label=column,
            )
        ax.set_xticks(range(len(rows)), [row.replace(", ", "\n") for row in rows])
        ax.set_title(kind)
    axes[0][0].set(ylabel="accuracy", ylim=(0, 1))
    fig.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(columns)
    )
    fig.savefig(file.with_suffix(".png"))
    plt.close(fig)
    print(f'Table: {file}  (fl.load_result("{file}"))\nPlot:  {file.with_suffix(".png")}')
