"""Reading the stored studies of Part III: a setting's accuracies as arrays, seed by seed.

A study's record (``fl.load_result("one_step")``, for one) holds rows for settings and seeds. A
setting is the dict it was run with (``study.py``); ``setting`` writes one down::

    few = dict(kind="unseen", budget=20)  # part="head" unless told
    fedavg = setting("private", 5, 50)  # 50 local steps
    one = setting("private", 5, 1)  # as many gradient steps
    accuracies(record, fedavg, **few)  # (seeds, new clients)
    fl.mean_interval(scores(record, fedavg, **few))  # (seeds,): the mean over new clients
    fl.mean_interval(difference(record, fedavg, one, **few))  # paired by seed

``UNTRAINED`` and ``CENTRALISED`` are the settings of those names.
"""

__all__ = [
    "CENTRALISED",
    "UNTRAINED",
    "accuracies",
    "curve",
    "difference",
    "scores",
    "seeds",
    "setting",
    "tuned",
]

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fedlib.experiments.one_step import CENTRALISED, UNTRAINED
from fedlib.experiments.study import MOST_STEPS


def setting(
    regime: str,
    classes: int,
    local_steps: int,
    matching: str = "steps",
    *,
    num_clients: int = 100,
    permuted: float = 0.0,
    **more: object,
) -> dict:
    """Return the dict that describes a setting.

    Args:
        regime: the federation's label regime: "shared", "private", "balanced" or "groups".
        classes: classes per training client.
        local_steps: per round; 1 is the one-step baseline.
        matching: to FedAvg with the most local steps: as many gradient "steps", or "rounds". With
            the most local steps these are one run, which is stored as "steps".
        num_clients: training clients of the federation.
        permuted: share of clients that renumber their labels; for "groups".
        more: ``cohort_size``, ``server_lr``, ``width``, ``algorithm``, where the study sets them.

    Example:
        >>> setting("private", 5, 50, "rounds") == setting("private", 5, 50, "steps")
        True
    """
    if local_steps == MOST_STEPS:
        matching = "steps"
    federation = [regime, classes, num_clients, permuted]
    return dict(federation=federation, local_steps=local_steps, matching=matching, **more)


def seeds(record: Mapping, setting: Mapping) -> list[int]:
    """Return the seeds of a setting's final runs, in the order of its arrays; none if not run."""
    return sorted(row["seed"] for row in record["final"] if row["setting"] == setting)


def accuracies(
    record: Mapping, setting: Mapping, *, part: str = "head", kind: str = "unseen", budget: int = 20
) -> Float[np.ndarray, "seeds clients"]:
    """Return the accuracy of every new client after fine-tuning.

    Args:
        record: a stored study.
        setting: one of its settings.
        part: what was fine-tuned: "head"; "all" layers; or, of ``UNTRAINED`` alone, "scratch", all
            layers for longer.
        kind: of new clients: "known" classes, "unseen" ones, or "cifar10".
        budget: images per class to fine-tune with: 5, 20 or 100.

    Returns:
        One row per seed, one column per client; NaN where training or fine-tuning diverged.

    Raises:
        KeyError: if the record lacks the setting, or what is asked of it.

    Reference: Chapter 12.
    """
    found = [_cell(row, part, kind, budget) for row in _rows(record, "final", setting)]
    clients = max((len(each) for each in found if each), default=1)
    return np.array([each or [np.nan] * clients for each in found], dtype=np.float64)


def scores(record: Mapping, setting: Mapping, **which: object) -> Float[np.ndarray, " seeds"]:
    """Return the mean accuracy over new clients for every seed; ``which`` as in ``accuracies``."""
    return accuracies(record, setting, **which).mean(axis=1)


def difference(
    record: Mapping, one: Mapping, other: Mapping, **which: object
) -> Float[np.ndarray, " seeds"]:
    """Return how much better the first setting does than the second, for every seed of both.

    Settings of one seed meet the same new clients, and one federation's the same training clients
    and initial weights; so a difference varies less from seed to seed than either score.
    """
    first, second = (
        dict(zip(seeds(record, each), scores(record, each, **which), strict=True))
        for each in (one, other)
    )
    return np.array([first[seed] - second[seed] for seed in first if seed in second])


def tuned(record: Mapping, setting: Mapping) -> dict[float, float]:
    """Return the accuracy on validation clients for every client step size that was tried.

    With the best fine-tuning step size for each; NaN where all diverged.

    Raises:
        KeyError: if the record lacks the setting.
    """
    tried = _rows(record, "tuning", setting)[0]["tried"]
    best = {
        float(lr): max((a for a in by_head_lr.values() if a is not None), default=np.nan)
        for lr, by_head_lr in tried.items()
    }
    return dict(sorted(best.items()))


def curve(
    record: Mapping, setting: Mapping
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "seeds points"]]:
    """Return the rounds at which a run was scored, and unseen classes' accuracy at each.

    For the seeds that were scored along the way and did not diverge; NaN where fine-tuning did.

    Raises:
        KeyError: if none was, as for settings with matched rounds.
    """
    series = [row["curve"] for row in _rows(record, "final", setting) if "diverged" not in row]
    series = [each for each in series if "accuracy" in each]
    if not series:
        raise KeyError(f"Invalid setting={setting}: not scored along the way. Use another.")
    rounds = np.array(series[0]["round_num"], dtype=np.float64)
    return rounds, np.array([each["accuracy"] for each in series], dtype=np.float64)


def _rows(record: Mapping, table: str, setting: Mapping) -> list[dict]:
    rows = [row for row in record[table] if row["setting"] == setting]
    if not rows:
        stored = [entry["setting"] for entry in record["chosen" if table == "final" else table]]
        raise KeyError(f"Invalid setting={setting}: not one of the record's. Use one of {stored}.")
    return sorted(rows, key=lambda row: row.get("seed", 0))


def _cell(row: Mapping, part: str, kind: str, budget: int) -> list[float] | None:
    """Return every client's accuracy; None where training or fine-tuning diverged."""
    if "diverged" in row:
        return None
    found = row
    for name, key in {"part": part, "kind": kind, "budget": str(budget)}.items():
        if key not in found:
            stored = sorted(set(found) - {"setting", "seed", "curve", "seconds"})
            raise KeyError(
                f"Invalid {name}={key}: not stored for setting={row['setting']} and the other "
                f"choices. Use one of {stored}."
            )
        found = found[key]
    return found
