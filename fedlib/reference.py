r"""Federated averaging as Chapter 1 writes it: what everything else here is tested against.

Plain torch, one client after the other, no options. :math:`\theta` is a dict of tensors by name.
"""

__all__ = ["fedavg", "local_sgd", "one_round", "server_step", "weighted_average"]

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlib.batches import draw_batches
from fedlib.clients import ClientData
from fedlib.fedavg import FedAvgConfig
from fedlib.losses import task_loss
from fedlib.models import Params, params_of


def local_sgd(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, batches: np.ndarray, lr: float
) -> Params:
    """Take one step of SGD per batch of a client's examples."""
    for rows in batches:
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = task_loss(functional_call(model, leaves, (x[rows],)), y[rows])
        grads = torch.autograd.grad(loss, list(leaves.values()))
        params = {n: p.detach() - lr * g for (n, p), g in zip(leaves.items(), grads, strict=True)}
    return params


def weighted_average(clients: list[Params], weights: list[int]) -> Params:
    """Average the clients' parameters, by their numbers of examples."""
    total = sum(weights)
    return {
        name: sum(w * own[name] for w, own in zip(weights, clients, strict=True)) / total
        for name in clients[0]
    }


def server_step(params: Params, average: Params, server_lr: float) -> Params:
    """Move from the old parameters towards the average; all the way with ``server_lr=1``."""
    return {name: p + server_lr * (average[name] - p) for name, p in params.items()}


def one_round(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    config: FedAvgConfig,
    rng: np.random.Generator,
) -> Params:
    """Draw a cohort, train its clients, average, step the server."""
    m = config.cohort_size or len(clients)
    cohort = rng.choice(len(clients), m, replace=False) if m < len(clients) else range(m)
    how = dict(local_steps=config.local_steps, batch_size=config.batch_size, rng=rng)
    sizes = [int(clients.sizes[i]) for i in cohort]
    batches = [draw_batches(size, **how) for size in sizes]
    trained = [
        local_sgd(model, params, *clients[i], rows, config.client_lr)
        for i, rows in zip(cohort, batches, strict=True)
    ]
    return server_step(params, weighted_average(trained, sizes), config.server_lr)


def fedavg(model: nn.Module, clients: ClientData, config: FedAvgConfig, seed: int) -> Params:
    """Run all rounds from the model's current parameters; return the server's at the end.

    Example:
        >>> from fedlib import LinearNet, run_fedavg
        >>> clients = ClientData(torch.ones(6, 2), torch.ones(6), np.array([2, 4]))
        >>> config = FedAvgConfig(
        ...     num_rounds=9, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.2
        ... )
        >>> plain = fedavg(LinearNet(2, 1), clients, config, seed=0)
        >>> fast = run_fedavg(LinearNet(2, 1), clients, config, seed=0, progress=False).params
        >>> bool(all(torch.allclose(plain[name], p) for name, p in fast.items()))
        True
    """
    params = params_of(model)
    for t in range(config.num_rounds):
        params = one_round(model, params, clients, config, np.random.default_rng([seed, t]))
    return params
