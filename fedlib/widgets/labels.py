"""Interactive of Chapter 11: how labels lie on the clients."""

__all__ = ["Labels"]

import json
from functools import cache

import numpy as np
import traitlets

from fedlib.data import load_digits
from fedlib.partition import partition_by_class, partition_dirichlet
from fedlib.widgets.base import Interactive, choice, number, whole


@cache
def tables() -> dict:
    """Images of each digit on each of ten clients, for every setting: drawn once, with seed 0."""
    labels = np.asarray(load_digits().labels)

    def counts(parts):
        return [np.bincount(labels[part], minlength=10).tolist() for part in parts]

    def rng():
        return np.random.default_rng(0)

    by_class = [
        partition_by_class(
            labels, num_clients=10, classes_per_client=c, examples_per_client=100, rng=rng()
        )
        for c in range(1, 11)
    ]
    grid = np.geomspace(0.05, 50, 13).round(3)
    dirichlet = [
        (float(a), partition_dirichlet(labels, num_clients=10, concentration=float(a), rng=rng()))
        for a in grid
    ]
    return {
        "classes": [counts(parts) for parts in by_class],
        "dirichlet": [[a, counts(parts)] for a, parts in dirichlet],
    }


class Labels(Interactive, module="labels"):
    """The scanned digits on ten clients: a few classes each, or Dirichlet shares.

    Args:
        kind: ``"classes"`` or ``"dirichlet"``.
        classes: digits of each client, for ``"classes"``.
        concentration: of the Dirichlet distribution; the nearest of thirteen values is shown.

    Example:
        >>> one, all = Labels(classes=1).numbers(), Labels(classes=10).numbers()
        >>> one["effective"].round(6).tolist() == [1.0] * 10, bool(all["moved"].max() < 0.01)
        (True, True)

    Reference:
        ``fedlib.partition_by_class``, ``fedlib.partition_dirichlet``. Chapter 11.
    """

    kind = choice("classes", {"classes": "class", "dirichlet": "Dirichlet"}, "split by")
    classes = whole(2, 1, 10, "classes per client")
    concentration = number(0.5, 0.05, 50.0, "Dirichlet concentration", log=True)
    tables = traitlets.Unicode(help="the counts of every setting, as JSON").tag(sync=True)

    def __init__(self, **state) -> None:
        super().__init__(**state)
        self.tables = json.dumps(tables(), separators=(",", ":"))

    def numbers(self) -> dict:
        """Counts, effective numbers of digits, and shares of images to relabel, per client."""
        if self.kind == "classes":
            counts = tables()["classes"][self.classes - 1]
        else:
            table = tables()["dirichlet"]
            off = [abs(np.log(a / self.concentration)) for a, _ in table]
            counts = table[int(np.argmin(off))][1]
        counts = np.array(counts, dtype=float)
        mixes, all_clients = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
        entropy = -np.sum(mixes * np.log(mixes, where=mixes > 0, out=np.zeros(mixes.shape)), axis=1)
        moved = np.abs(mixes - all_clients).sum(axis=1) / 2
        return {"counts": counts, "effective": np.exp(entropy), "moved": moved}
