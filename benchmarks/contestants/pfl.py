"""pfl-research, whose unit of parallelism is the process. Settings: 1 process, 2 processes."""

import os
import socket
import subprocess
import sys

from benchmarks.contestants._common import Clock, Work, arguments

options = arguments()
if options.setting == "2 processes" and "PFL_WORKER_RANK" not in os.environ:
    # As its guide to distributed simulation says; the second process is this file again.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["PFL_WORKER_ADDRESSES"] = f"127.0.0.1:{port},127.0.0.1:{port}"
    os.environ["PFL_WORKER_RANK"] = "1"
    subprocess.Popen([sys.executable, *sys.orig_argv[1:]])
    os.environ["PFL_WORKER_RANK"] = "0"

import torch  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.internal.ops.pytorch_ops import distributed  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402

from benchmarks.contestants._torch import build, loss  # noqa: E402

work = Work(options.work)
module = build(work)
clock = Clock(options)


class Timed(TrainingProcessCallback):
    """Ends all processes after the same round: the first holds the clock."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        on = torch.zeros(1)
        if distributed.global_rank == 0:
            on += clock(lambda: {name: p.numpy() for name, p in module.state_dict().items()})
        (on,) = distributed.all_reduce([on])
        return not on.item(), Metrics()


# --- user code ---
federation = [tuple(map(torch.from_numpy, work.client(i))) for i in range(work.num_clients)]
module.loss = lambda inputs, targets: loss(module(inputs), targets)
module.metrics = lambda x, y: {"loss": Weighted(module.loss(x, y).item() * len(x), len(x))}
model = PyTorchModel(
    module, torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
)


def users():
    t = 0
    while True:
        yield from work.positions(t).items()
        t += 1


def dataset(user):
    # All batches in one gather: `Dataset` then cuts them as views, which costs least.
    i, batches = user
    rows = torch.from_numpy(batches).flatten()
    return Dataset([values[rows] for values in federation[i]])


backend = SimulatedBackend(FederatedDataset(dataset, users().__next__), val_data=None)
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=10**9,
        evaluation_frequency=10**9,
        train_cohort_size=work.cohort_size,
        val_cohort_size=None,
    ),
    backend,
    model,
    NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=work.client_lr, local_batch_size=work.batch_size
    ),
    NNEvalHyperParams(local_batch_size=None),
    callbacks=[Timed()],
    send_metrics_to_platform=False,
)
# --- end of user code ---
