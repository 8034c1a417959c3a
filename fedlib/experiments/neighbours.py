"""The table of Chapter 15: the algorithms next to FedAvg, tuned alike, on the same federations.

All take as many gradient steps as FedAvg; Per-FedAvg's trial steps and FedRep's steps on the head
count. Client step sizes are tuned; an algorithm's other constant is set in advance.
"""

__all__ = ["ALGORITHMS", "STUDY", "main"]

from pathlib import Path

from fedlib.experiments.cifar import Federation
from fedlib.experiments.study import Study

FEDERATIONS = (Federation("shared", 20), Federation("private", 5))
ALGORITHMS = {
    "fedprox": dict(algorithm=["fedprox", 1.0]),
    "scaffold": dict(algorithm=["scaffold"]),
    "reptile": dict(server_lr=0.5),
    "per_fedavg": dict(algorithm=["per_fedavg", 0.05]),
    "fedrep": dict(algorithm=["fedrep", 25], local_steps=25, matching="rounds"),
    "local": dict(algorithm=["local"]),
}
"""What differs from FedAvg; FedRep takes 25 steps on the head and 25 on the body."""

SETTINGS = [
    dict(federation=list(federation), local_steps=50, matching="steps") | differs
    for federation in FEDERATIONS
    for differs in ALGORITHMS.values()
]
STUDY = Study(
    name="neighbours",
    settings=SETTINGS,
    middles=[0.05] * len(SETTINGS),
    core=len(SETTINGS),
    seeds=(0, 1, 2),
)


def main(output: Path, workers: int) -> None:
    """Compute the table and store it as ``output/neighbours.json``."""
    STUDY.run(output, workers)
