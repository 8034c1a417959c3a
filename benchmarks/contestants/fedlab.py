"""FedLab: its standalone pipeline, clients one by one in this process. Settings: serial."""

import logging

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # FedLab imports torchvision for its data sets, which are not used here. The package index has
    # it for CUDA only; beside a CPU build of torch it misses two operators of its own.
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor"
        )

from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline

from benchmarks.contestants._common import Clock, Work, arguments
from benchmarks.contestants._torch import build, loss

logging.disable()
options = arguments()
work = Work(options.work)
clock = Clock(options)


# --- user code ---
federation = [tuple(map(torch.from_numpy, work.client(i))) for i in range(work.num_clients)]


class Batches:
    """The batches of the round, where FedLab's own data sets make a `DataLoader`, which is slow."""

    def start_round(self, t):
        self.of_client = work.positions(t)

    def get_dataloader(self, client, batch_size):
        inputs, targets = federation[client]
        for rows in torch.from_numpy(self.of_client[client]):
            yield inputs[rows], targets[rows]


class Handler(FedAvgServerHandler):
    def sample_clients(self):
        batches.start_round(self.round)
        return work.cohort(self.round).tolist()

    @property
    def num_clients_per_round(self):
        return work.cohort_size


class Pipeline(StandalonePipeline):
    def evaluate(self):
        state = self.handler.model.state_dict()
        if not clock(lambda: {name: p.numpy() for name, p in state.items()}):
            self.handler.global_round = self.handler.round


batches = Batches()
handler = Handler(build(work), global_round=10**9, sample_ratio=work.cohort_size / work.num_clients)
trainer = FedAvgSerialClientTrainer(build(work), work.num_clients)
trainer.setup_dataset(batches)
trainer.setup_optim(epochs=1, batch_size=work.batch_size, lr=work.client_lr)
trainer.criterion = loss
Pipeline(handler, trainer).main()
# --- end of user code ---
