"""Interactive of Chapter 12: stored runs on images, up to a horizon."""

__all__ = ["Horizon"]

import json
from functools import cache
from itertools import product

import numpy as np
import traitlets
from scipy import stats

from fedlib import stored
from fedlib.evaluate import mean_interval
from fedlib.widgets.base import Interactive, choice, whole

SETTINGS = tuple(product(("shared", "private"), ("5", "20", "80")))
LEAST = 3
"""Seeds without which a point of the long run is not shown."""


def short_runs(record: dict) -> dict:
    """Read ``one_step``: accuracy every 250 steps, in one seed, and at the end, in all of them."""
    taus, curves, scores = (1, 2, 5, 10, 50), {}, {}
    for (regime, classes), tau in product(SETTINGS, taus):
        setting, name = stored.setting(regime, int(classes), tau), f"{regime} {classes} {tau}"
        points, curve = stored.curve(record, setting)
        steps = [int(t) * tau for t in points]
        curves[name] = curve[0].round(4).tolist()
        last = stored.scores(record, setting, kind="unseen", budget=20)
        scores[name] = [last.round(5).tolist()]
    return {"taus": taus, "points": steps, "curves": curves, "scored": steps[-1:], "scores": scores}


def long_runs(record: dict) -> dict | None:
    """Read ``long_run``: means over the seeds that all plain runs have, at the points of all.

    Step sizes of clients and heads are those that are best on validation clients. None, if fewer
    than three seeds are there, or fewer than two points.
    """
    taus, best = (1, 10, 50), dict[tuple, tuple]()
    for row in record["rows"]:
        regime, classes, num_clients, permuted = row["federation"]
        if row["variant"] != "plain" or (num_clients, permuted) != (100, 0) or "head" not in row:
            continue
        valid = [-1 if a is None else a for a in row["head"]["validation"]]
        found = max(valid), row["head"]["unseen"][int(np.argmax(valid))]
        key = f"{regime} {classes} {row['local_steps']}", row["steps"], row["seed"]
        if found[1] is not None:
            best[key] = max(best.get(key, found), found)
    names = [f"{regime} {classes} {tau}" for (regime, classes), tau in product(SETTINGS, taus)]
    seeds = sorted({seed for *_, seed in best})
    seeds = [s for s in seeds if all(any(k[::2] == (n, s) for k in best) for n in names)]
    points = [
        t
        for t in sorted({t for _, t, _ in best})
        if all((name, t, seed) in best for name, seed in product(names, seeds))
    ]
    if len(seeds) < LEAST or len(points) < 2:
        return None
    scores = {n: [[round(best[n, t, s][1], 5) for s in seeds] for t in points] for n in names}
    curves = {name: np.mean(scores[name], axis=1).round(4).tolist() for name in names}
    return {"taus": taus, "points": points, "curves": curves, "scored": points, "scores": scores}


@cache
def runs() -> dict:
    """The stored runs: the long ones as soon as they are there."""
    try:
        found = long_runs(stored.load_result("long_run"))
    except FileNotFoundError:
        found = None
    found = found or short_runs(stored.load_result("one_step"))
    (num_seeds,) = {len(seeds) for each in found["scores"].values() for seeds in each}
    return found | {"t": float(stats.t.ppf(0.975, num_seeds - 1))}


class Horizon(Interactive, module="horizon"):
    """New clients' accuracy on unseen classes, along stored runs on images and at their end.

    The runs are those of Chapter 12, at equal gradient steps; a fresh head is fine-tuned with 20
    images per class. One seed was scored on the way, five at the end; of the long runs, once they
    are stored, all seeds at every point.

    Args:
        regime: the training clients' labels, ``"shared"`` or ``"private"``.
        classes: classes per training client, ``"5"``, ``"20"`` or ``"80"``.
        steps: gradient steps up to which the run is followed.

    Example:
        >>> lead, half_width = Horizon(regime="private", classes="5").numbers()["lead"]
        >>> bool(lead > half_width)
        True

    Reference:
        The stored studies ``long_run``, else ``one_step``. Chapter 12.
    """

    regime = choice("private", {"shared": "shared", "private": "private"}, "labels")
    classes = choice("5", {c: c for c in ("5", "20", "80")}, "classes per client")
    steps = whole(
        runs()["points"][-1],
        runs()["points"][0],
        runs()["points"][-1],
        "gradient steps",
        step=runs()["points"][0],
    )
    runs = traitlets.Unicode(help="accuracies of every run, as JSON").tag(sync=True)

    def __init__(self, **state) -> None:
        super().__init__(**state)
        self.runs = json.dumps(runs(), separators=(",", ":"))

    def numbers(self) -> dict:
        """Curves, their values at the horizon; intervals, and FedAvg's lead, paired by seed.

        Intervals belong to the last point up to the horizon that all seeds were scored at, or, if
        there is none, to the end.
        """
        found = runs()
        own = [f"{self.regime} {self.classes} {tau}" for tau in found["taus"]]
        curves = np.array([found["curves"][name] for name in own])
        at = np.searchsorted(found["points"], self.steps, side="right") - 1
        scored = np.searchsorted(found["scored"], self.steps, side="right") - 1
        scores = np.array([found["scores"][name][scored] for name in own])
        return {
            "curves": curves,
            "here": curves[:, at],
            "final": np.array([mean_interval(values) for values in scores]),
            "lead": np.array(mean_interval(scores[-1] - scores[0])),
        }
