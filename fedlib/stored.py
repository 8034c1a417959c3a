"""Stored results: what chapters read of studies that take hours.

``load_result`` gives a study's record. Those of Part III hold rows for settings and seeds; a
setting is the dict that it was run with, and ``setting`` writes one down::

    record, few = load_result("one_step"), dict(kind="unseen", budget=20)  # part="head" unless told
    fedavg = setting("private", 5, 50)  # 50 local steps
    one = setting("private", 5, 1)  # as many gradient steps
    accuracies(record, fedavg, **few)  # (seeds, new clients)
    fl.mean_interval(scores(record, fedavg, **few))  # (seeds,): the mean over new clients
    fl.mean_interval(difference(record, fedavg, one, **few))  # paired by seed

``UNTRAINED`` and ``CENTRALISED`` are the settings of those names. The studies themselves are in
``studies/``, and run from a checkout of the book.
"""

__all__ = [
    "CENTRALISED",
    "MOST_STEPS",
    "PROVENANCE",
    "UNTRAINED",
    "accuracies",
    "curve",
    "difference",
    "load_result",
    "scores",
    "seeds",
    "setting",
    "tuned",
]

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fedlib._checks import check_type

PROVENANCE = ("command", "commit", "date", "device", "seeds", "versions", "wall_seconds")
"""What every stored result says about itself."""

MOST_STEPS = 50
"""FedAvg's local steps where a study compares at equal rounds."""

UNTRAINED = dict(federation=["untrained", 80, 1, 0.0], local_steps=1, matching="steps")
CENTRALISED = dict(federation=["pooled", 80, 1, 0.0], local_steps=MOST_STEPS, matching="steps")


def load_result(name: str | Path) -> dict:
    """Load a result stored with the book, or one of your own.

    Args:
        name: the study's name, for example "puzzle"; or the path of a file that ends in ".json",
            which ``python -m studies`` wrote for you.

    Returns:
        The stored record; ``["provenance"]`` says how it was made.

    Raises:
        FileNotFoundError: if no such result is stored.

    Example:
        >>> sorted(load_result("puzzle"))
        ['chosen', 'design', 'final', 'provenance', 'tuning']
    """
    name = str(name) if isinstance(name, Path) else name
    own = Path(check_type("name", name, str, 'Use name="puzzle", say.'))
    if own.suffix == ".json" and own.exists():
        return json.loads(own.read_text(encoding="utf-8"))
    folder = resources.files("fedlib.results")
    names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))
    if name not in names:
        raise FileNotFoundError(
            f'Invalid name="{name}": no such stored result. Use one of {names}; or the path of '
            'a file that python -m studies wrote, "_build/studies/mine.json" say.'
        )
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


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


def scores(record: Mapping, setting: Mapping, **which: Any) -> Float[np.ndarray, " seeds"]:
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
    found: Any = row
    for name, key in {"part": part, "kind": kind, "budget": str(budget)}.items():
        if key not in found:
            stored = sorted(set(found) - {"setting", "seed", "curve", "seconds"})
            raise KeyError(
                f"Invalid {name}={key}: not stored for setting={row['setting']} and the other "
                f"choices. Use one of {stored}."
            )
        found = found[key]
    return found
