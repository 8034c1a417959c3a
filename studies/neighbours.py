"""The table of Chapter 15: the algorithms next to FedAvg, tuned alike, on the same federations.

All take as many gradient steps as FedAvg; Per-FedAvg's trial steps and FedRep's steps on the head
count. An algorithm's own constant is tuned together with its client step size: every value of it
gets a search of its own, and the best on validation clients goes on.
"""

__all__ = ["ALGORITHMS", "STUDY", "compute"]

from pathlib import Path

from studies.federations import Federation
from studies.tuning import TuningStudy, around

FEDERATIONS = (Federation("shared", 20), Federation("private", 5))
ALGORITHMS = {
    "fedprox": [dict(algorithm=["fedprox", mu]) for mu in (0.01, 0.1, 1.0, 10.0)],
    "scaffold": [dict(algorithm=["scaffold"])],
    "reptile": [dict(server_lr=lr) for lr in (0.25, 0.5, 1.5, 2.0, 3.0)],
    "per_fedavg": [
        dict(algorithm=["per_fedavg", inner_lr]) for inner_lr in (0.002, 0.01, 0.05, 0.2)
    ],
    "fedrep": [
        dict(algorithm=["fedrep", head], local_steps=50 - head, matching="rounds")
        for head in (2, 5, 10, 25, 40)
    ],
    "local": [dict(algorithm=["local"])],
}
"""What differs from FedAvg, for every value of an algorithm's constant."""

SETTINGS = [
    dict(federation=list(federation), local_steps=50, matching="steps") | differs
    for federation in FEDERATIONS
    for variants in ALGORITHMS.values()
    for differs in variants
]


def _variant_of(setting: dict) -> tuple:
    name = setting.get("algorithm", ["reptile"])[0]
    return *setting["federation"], name


STUDY = TuningStudy(
    name="neighbours",
    settings=SETTINGS,
    starts=[around(0.05)] * len(SETTINGS),
    core=len(SETTINGS),
    seeds=(0, 1, 2, 3, 4),
    variant_of=_variant_of,
)


def compute(output: Path, workers: int) -> None:
    """Compute the table and store it as ``output/neighbours.json``."""
    STUDY.run(output, workers)
