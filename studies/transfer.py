"""The ablations of Chapter 14: what widens the gap between FedAvg and one step, what closes it.

All runs take as many gradient steps. The dial turns from labels that all clients share to labels
that each client numbers in its own order; "balanced" orders leave no mean label at all.
"""

__all__ = ["STUDY", "compute"]

from pathlib import Path

from studies.federations import Federation
from studies.tuning import TuningStudy, around

PRIVATE = Federation("private", 5)
DIAL = [Federation("groups", 5, 100, permuted) for permuted in (0.0, 0.5, 1.0, 0.25, 0.75)]
EIGHTY = [Federation(regime, 5, 80) for regime in ("balanced", "private")]
MIDDLES = {1: 0.1, 50: 0.05}


def _setting(federation: Federation, local_steps: int, **differs: object) -> dict:
    return dict(federation=list(federation), local_steps=local_steps, matching="steps", **differs)


SETTINGS = [
    *(_setting(f, tau) for f in (*DIAL[:3], *EIGHTY) for tau in MIDDLES),
    *(_setting(f, tau) for f in DIAL[3:] for tau in MIDDLES),
    *(_setting(PRIVATE, tau, cohort_size=2) for tau in MIDDLES),
    *(_setting(PRIVATE, tau, cohort_size=50) for tau in MIDDLES),
    *(_setting(PRIVATE, 50, server_lr=server_lr) for server_lr in (0.5, 1.5)),
    *(_setting(PRIVATE, tau, width=4) for tau in MIDDLES),
]
STUDY = TuningStudy(
    name="transfer",
    settings=SETTINGS,
    starts=[around(MIDDLES[setting["local_steps"]]) for setting in SETTINGS],
    core=2 * len(DIAL[:3] + EIGHTY),
    seeds=(0, 1, 2, 3, 4),
)


def compute(output: Path, workers: int) -> None:
    """Compute the table and store it as ``output/transfer.json``."""
    STUDY.run(output, workers)
