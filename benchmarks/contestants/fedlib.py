"""fedlib. Settings: auto, and the names of its strategies."""

import numpy as np
import torch

import fedlib as fl
from benchmarks.contestants._common import Clock, Work, arguments
from benchmarks.work import Workload, build

options = arguments()
work = Work(options.work)
numbers = {name: getattr(work, name) for name in Workload.__dataclass_fields__}
model = build(Workload(**numbers))
clock = Clock(options)

# --- user code ---
sizes = np.full(work.num_clients, work.size)
clients = fl.ClientData(torch.from_numpy(work.inputs), torch.from_numpy(work.targets), sizes)
config = fl.FedAvgConfig(
    num_rounds=1,
    local_steps=work.local_steps,
    cohort_size=work.cohort_size,
    batch_size=work.batch_size,
    client_lr=work.client_lr,
)
params = fl.params_of(model)


def one_round(t):
    global params
    rng = np.random.default_rng([0, t % work.drawn])
    params, _ = fl.run_round(model, params, clients, config, rng=rng, strategy=options.setting)


# --- end of user code ---
clock.loop(one_round, lambda: {name: p.numpy() for name, p in params.items()})
