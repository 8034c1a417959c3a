"""Federated averaging and the representation it learns: the library behind the book."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedlib import distributed
from fedlib.aggregate import server_step, weighted_average
from fedlib.algorithm import Algorithm, History, RunResult, run
from fedlib.batches import draw_batches
from fedlib.cifar import DataError, load_cifar10, load_cifar100
from fedlib.clients import ClientData
from fedlib.cohort import ClientParams, WeightedSum, map_clients, sum_clients
from fedlib.data import ImageSet, load_digits
from fedlib.evaluate import Interval, evaluate, mean_interval
from fedlib.fedavg import FedAvgConfig, FedAvgResult, draw_round, fedavg, run_fedavg, run_round
from fedlib.fedrep import FedRepResult, fedrep, run_fedrep
from fedlib.finetune import fine_tune
from fedlib.glyphs import load_glyphs
from fedlib.local import LocalResult, local_sgd
from fedlib.losses import task_loss
from fedlib.models import CNN, MLP, BodyHead, LinearNet, Params, params_of, with_body
from fedlib.partition import (
    partition_by_class,
    partition_dirichlet,
    partition_iid,
    private_labels,
)
from fedlib.represent import (
    ClassSimilarity,
    class_similarity,
    effective_rank,
    features,
    linear_cka,
    linear_probe,
)
from fedlib.rules import (
    LocalStep,
    clip_by_global_norm,
    control_variate,
    momentum,
    per_fedavg,
    proximal,
    sgd,
    weight_decay,
)
from fedlib.scaffold import run_scaffold, scaffold
from fedlib.server import ServerRule, fedadam, fedavgm, fedyogi
from fedlib.storage import load_clients, save_clients
from fedlib.stored import load_result
from fedlib.strategy import Strategy
from fedlib.table import Table, table

if TYPE_CHECKING:
    from fedlib import linear, plot, puzzle, reference, stored

__version__ = "0.1.0"


__all__ = [
    "CNN",
    "MLP",
    "Algorithm",
    "BodyHead",
    "ClassSimilarity",
    "ClientData",
    "ClientParams",
    "DataError",
    "FedAvgConfig",
    "FedAvgResult",
    "FedRepResult",
    "History",
    "ImageSet",
    "Interval",
    "LinearNet",
    "LocalResult",
    "LocalStep",
    "Params",
    "RunResult",
    "ServerRule",
    "Strategy",
    "Table",
    "WeightedSum",
    "class_similarity",
    "clip_by_global_norm",
    "control_variate",
    "distributed",
    "draw_batches",
    "draw_round",
    "effective_rank",
    "evaluate",
    "features",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedrep",
    "fedyogi",
    "fine_tune",
    "linear",
    "linear_cka",
    "linear_probe",
    "load_cifar10",
    "load_cifar100",
    "load_clients",
    "load_digits",
    "load_glyphs",
    "load_result",
    "local_sgd",
    "map_clients",
    "mean_interval",
    "momentum",
    "params_of",
    "partition_by_class",
    "partition_dirichlet",
    "partition_iid",
    "per_fedavg",
    "plot",
    "private_labels",
    "proximal",
    "puzzle",
    "reference",
    "run",
    "run_fedavg",
    "run_fedrep",
    "run_round",
    "run_scaffold",
    "save_clients",
    "scaffold",
    "server_step",
    "sgd",
    "stored",
    "sum_clients",
    "table",
    "task_loss",
    "weight_decay",
    "weighted_average",
    "with_body",
]

# Matplotlib and SciPy take a second to load; widgets and flower need packages that fedlib does not.
_LAZY = ("flower", "linear", "loopback", "plot", "puzzle", "reference", "widgets")


def __getattr__(name: str) -> Any:
    """Load a module when it is first asked for."""
    if name in _LAZY:
        return import_module(f"fedlib.{name}")
    raise AttributeError(f"module 'fedlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
