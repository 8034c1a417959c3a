"""Federated averaging and the representation it learns: the library behind the book."""

import importlib

from fedlib import distributed, experiments, linear, plot
from fedlib.aggregate import server_step, weighted_average
from fedlib.batches import draw_batches
from fedlib.cifar import DataError, load_cifar10, load_cifar100
from fedlib.clients import ClientData
from fedlib.data import ImageSet, load_digits
from fedlib.engine import Strategy
from fedlib.evaluate import Interval, evaluate, mean_interval
from fedlib.experiments.store import load_result
from fedlib.fedavg import FedAvgConfig, FedAvgResult, History, run_fedavg, run_round
from fedlib.finetune import fine_tune
from fedlib.glyphs import load_glyphs
from fedlib.local import LocalResult, local_sgd, task_loss
from fedlib.models import CNN, MLP, BodyHead, LinearNet, Params, params_of, with_body
from fedlib.neighbours import FedRepResult, run_fedrep, run_scaffold
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
from fedlib.steps import LocalStep, control_variate, momentum, per_fedavg, proximal, sgd
from fedlib.storage import load_clients, save_clients
from fedlib.table import Table, table

__version__ = "0.1.0"


def __getattr__(name: str):
    """Load ``fl.widgets`` when it is first asked for: it needs packages that fedlib does not."""
    if name == "widgets":
        return importlib.import_module("fedlib.widgets")
    raise AttributeError(f"module 'fedlib' has no attribute {name!r}")


__all__ = [
    "CNN",
    "MLP",
    "BodyHead",
    "ClassSimilarity",
    "ClientData",
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
    "Strategy",
    "Table",
    "class_similarity",
    "control_variate",
    "distributed",
    "draw_batches",
    "effective_rank",
    "evaluate",
    "experiments",
    "features",
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
    "run_fedavg",
    "run_fedrep",
    "run_round",
    "run_scaffold",
    "save_clients",
    "server_step",
    "sgd",
    "table",
    "task_loss",
    "weighted_average",
    "with_body",
]
