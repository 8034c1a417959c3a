"""SCAFFOLD: FedAvg whose local steps are corrected for drift."""

__all__ = ["run_scaffold", "scaffold"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlib.aggregate import server_step
from fedlib.algorithm import Algorithm, History, Metrics, State, run_checked
from fedlib.clients import ClientData
from fedlib.cohort import plan
from fedlib.fedavg import (
    FedAvgConfig,
    FedAvgResult,
    check_round,
    draw_round,
    identity_of,
    step_counts,
)
from fedlib.fedrep import repeated
from fedlib.losses import Loss
from fedlib.models import Params, params_of
from fedlib.rules import control_variate
from fedlib.strategy import Strategy
from fedlib.validate import check_model


def run_scaffold(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    seed: int,
    metrics: Metrics | None = None,
    eval_every: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
    stop: Callable[[History], bool] | None = None,
) -> FedAvgResult:
    r"""Train ``model`` by SCAFFOLD: FedAvg whose local steps are corrected for drift.

    Every client keeps a control :math:`\hat g_i`, zero at first, an estimate of its gradient at
    the server's parameters :math:`\theta`. It steps along :math:`g-\hat g_i+\hat g`, where
    :math:`\hat g` is the mean of all clients' controls, and ends at :math:`\theta_{i,\tau}`. If it
    took part, its control becomes
    :math:`\hat g_i-\hat g+(\theta-\theta_{i,\tau})/(\tau\alpha)`, the mean of the gradients it met
    ("option II").
    The server averages as FedAvg does.

    Means over clients are weighted by numbers of examples, as everywhere here, also that of the
    controls; with clients of one size, this is the published algorithm. The server moves its
    control by each cohort's mean change times its share of the clients, which keeps it at the mean
    of all; so here only the clients' are stored.

    All promises of ``run_fedavg`` hold: one seed, one result; resumed runs; several ranks.

    Args:
        model: as for ``run_fedavg``.
        clients: the federation's data.
        config: the run's configuration.
        seed: keys all randomness of the run, at least 0. Cohorts and batches are FedAvg's.
        metrics: as for ``run_fedavg``.
        eval_every: as for ``run_fedavg``.
        checkpoint: as for ``run_fedavg``. The file, and memory, hold M + 1 times the parameters.
        progress: show a progress bar.
        strategy: as for ``run_fedavg``, but clients cannot be merged.
        loss: as for ``run_fedavg``.
        stop: as for ``run_fedavg``.

    Returns:
        Final parameters and history.

    Raises:
        TypeError, ValueError, OSError, FloatingPointError, RuntimeError: as ``run_fedavg``.

    Example:
        >>> from fedlib import LinearNet
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, -2.0])
        >>> clients = ClientData(inputs, targets, np.array([1, 1]))  # optima 1 and -1
        >>> config = FedAvgConfig(
        ...     num_rounds=50, local_steps=5, cohort_size=None, batch_size=None, client_lr=0.1
        ... )
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
        >>> run_scaffold(model, clients, config, seed=0, progress=False).params["0.weight"]
        tensor([[-0.6000]])

    Reference:
        Karimireddy et al. (2020), SCAFFOLD: stochastic controlled averaging for federated learning,
        Algorithm 1. Chapter 15.
    """
    algorithm = scaffold(model, clients, config, strategy=strategy, loss=loss)
    result = run_checked(
        algorithm,
        model,
        num_rounds=config.num_rounds,
        seed=seed,
        metrics=metrics,
        eval_every=eval_every,
        checkpoint=checkpoint,
        progress=progress,
        stop=stop,
        num_clients=len(clients),
        device=clients.device,
    )
    return FedAvgResult(result.params, result.history)


def scaffold(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
) -> Algorithm:
    """Return SCAFFOLD as an ``Algorithm``; see ``run_scaffold``.

    Its state holds ``params`` and ``clients``, the controls, each with a leading axis of M clients.
    """
    check_round(clients, config, control_variate)
    ready = check_model(model, params_of(model), clients, loss)
    steps = step_counts(config, clients)
    planned = plan(
        ready, rule=control_variate, client_state=True, local_steps=steps, strategy=strategy
    )

    def init(params: Params) -> State:
        zeros = {name: torch.zeros_like(params[name]) for name in planned.trainable}
        rows = {name: repeated(zero, len(clients)) for name, zero in zeros.items()}
        return {"params": params, "clients": rows}

    def play(state: State, rng: np.random.Generator) -> tuple[State, dict[str, float]]:
        params, controls = state["params"], state["clients"]
        cohort, batches = draw_round(clients, config, rng=rng)
        index = torch.as_tensor(cohort, device=clients.device)
        mean = {name: _mean(rows, clients.sizes) for name, rows in controls.items()}
        correction = {name: mean[name] - rows[index] for name, rows in controls.items()}
        moved = planned.map(
            clients,
            params,
            cohort,
            batches,
            lr=config.client_lr,
            client_state=correction,
            key=planned.draw_key(rng),
        )
        average, kept, sizes = {}, {}, clients.sizes[cohort]
        for name, rows in moved.params.items():
            average[name] = _mean(rows, sizes)
            gradient = (params[name] - rows) / _per_row(batches, config.client_lr, rows)
            kept[name] = controls[name].index_copy(0, index, gradient - correction[name])
        before = {name: params[name] for name in average}
        params = params | server_step(before, average, server_lr=config.server_lr)
        found: dict[str, Any] = {"loss": float(_mean(moved.losses, sizes))}
        if not (finite := moved.finite()).all():
            found["diverged"] = sorted(cohort[~finite].tolist())
        return {"params": params, "clients": kept}, found

    identity = identity_of(planned, clients, config)
    return Algorithm(init, play, lambda state: state["params"], identity)


def _per_row(batches: list[np.ndarray], lr: float, rows: Tensor) -> float | Tensor:
    """Return how far each client has gone, the number of its steps times their size."""
    ways = [len(own) * lr for own in batches]
    if len(set(ways)) == 1:
        return ways[0]
    shape = (len(ways), *[1] * (rows.ndim - 1))
    return torch.tensor(ways, dtype=rows.dtype, device=rows.device).view(shape)


def _mean(rows: Tensor, weights: np.ndarray) -> Tensor:
    """Return the weighted mean along the first axis, summed in float32 at least."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    shares = torch.as_tensor(weights / weights.sum(), dtype=dtype, device=rows.device)
    return torch.tensordot(shares, rows.to(dtype), 1).to(rows.dtype)
