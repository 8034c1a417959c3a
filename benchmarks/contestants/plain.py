"""The loop that a reader would write. Settings: loop."""

from copy import deepcopy

import torch

from benchmarks.contestants._common import Clock, Work, arguments
from benchmarks.contestants._torch import build, loss

options = arguments()
work = Work(options.work)
server = build(work)
clock = Clock(options)


# --- user code ---
federation = [tuple(map(torch.from_numpy, work.client(i))) for i in range(work.num_clients)]


def train(model, inputs, targets, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=work.client_lr)
    for batch in batches:
        optimizer.zero_grad()
        loss(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return model.state_dict()


def one_round(t):
    states = []
    for i, batches in zip(work.cohort(t), torch.from_numpy(work.batches(t)), strict=True):
        states.append(train(deepcopy(server), *federation[i], batches))
    average = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    server.load_state_dict(average)


# --- end of user code ---
clock.loop(one_round, lambda: {name: p.numpy() for name, p in server.state_dict().items()})
