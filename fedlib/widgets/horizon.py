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

TAUS, CLASSES = (1, 2, 5, 10, 50), ("5", "20", "80")


@cache
def runs() -> dict:
    """Each setting's accuracy every 250 steps, in one seed, and at the end, in all of them."""
    record, curves, scores = stored.load_result("one_step"), {}, {}
    for regime, classes, tau in product(("shared", "private"), CLASSES, TAUS):
        setting, name = stored.setting(regime, int(classes), tau), f"{regime} {classes} {tau}"
        curves[name] = stored.curve(record, setting)[1][0].round(4).tolist()
        last = stored.scores(record, setting, kind="unseen", budget=20)
        scores[name] = last.round(5).tolist()
    (num_seeds,) = {len(values) for values in scores.values()}  # one quantile for all
    return {"curves": curves, "scores": scores, "t": float(stats.t.ppf(0.975, num_seeds - 1))}


class Horizon(Interactive, module="horizon"):
    """New clients' accuracy on unseen classes, along stored runs on images and at their end.

    The runs are those of Chapter 12, at equal gradient steps; a fresh head is fine-tuned with 20
    images per class. One seed was scored on the way, five at the end.

    Args:
        regime: the training clients' labels, ``"shared"`` or ``"private"``.
        classes: classes per training client, ``"5"``, ``"20"`` or ``"80"``.
        steps: gradient steps up to which the run is followed, 250 to 2,000.

    Example:
        >>> lead, half_width = Horizon(regime="private", classes="5").numbers()["lead"]
        >>> bool(lead > half_width)
        True

    Reference:
        The stored study ``one_step``. Chapter 12.
    """

    regime = choice("private", {"shared": "shared", "private": "private"}, "labels")
    classes = choice("5", {c: c for c in CLASSES}, "classes per client")
    steps = whole(2000, 250, 2000, "gradient steps", step=250)
    runs = traitlets.Unicode(help="accuracies of every run, as JSON").tag(sync=True)

    def __init__(self, **state) -> None:
        super().__init__(**state)
        self.runs = json.dumps(runs(), separators=(",", ":"))

    def numbers(self) -> dict:
        """Curves, their values at the horizon; final intervals; FedAvg's lead, paired by seed."""
        own = [f"{self.regime} {self.classes} {tau}" for tau in TAUS]
        curves = np.array([runs()["curves"][name] for name in own])
        scores = np.array([runs()["scores"][name] for name in own])
        return {
            "curves": curves,
            "here": curves[:, self.steps // 250 - 1],
            "final": np.array([mean_interval(values) for values in scores]),
            "lead": np.array(mean_interval(scores[-1] - scores[0])),
        }
