"""FedRep: a shared body, and a head of each client's own."""

__all__ = ["FedRepResult", "fedrep", "run_fedrep"]

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fedlib._checks import check_positive_int
from fedlib.aggregate import server_step
from fedlib.algorithm import Algorithm, History, Metrics, State, run_checked
from fedlib.clients import ClientData
from fedlib.cohort import plan
from fedlib.fedavg import FedAvgConfig, check_round, draw_round, identity_of, step_counts
from fedlib.losses import Loss
from fedlib.models import Params, params_of
from fedlib.rules import sgd
from fedlib.strategy import Strategy
from fedlib.validate import check_model, trainable_of


class FedRepResult(NamedTuple):
    """What ``run_fedrep`` returns.

    Attributes:
        params: the server's body, joined with the model's initial head, which never moved.
        history: loss and metrics of the evaluated rounds.
        personal: one set of parameters per client, as ``evaluate`` accepts: the server's body and
            the client's own head. A client that was never drawn has the initial head.
    """

    params: Params
    history: History
    personal: list[Params]


def run_fedrep(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    head_steps: int,
    seed: int,
    metrics: Metrics | None = None,
    eval_every: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
    stop: Callable[[History], bool] | None = None,
) -> FedRepResult:
    """Train a shared body and personal heads by FedRep, from the model's current parameters.

    Every client of a round's cohort starts from the server's body and its own head. It takes
    ``head_steps`` SGD steps on the head, then ``config.local_steps`` on the rest with the head
    fixed. The rest is averaged; heads never leave their clients. Both kinds of steps have size
    ``config.client_lr``, and walk through the same shuffled examples, one after the other.

    All promises of ``run_fedavg`` hold: one seed, one result; resumed runs; several ranks.

    Args:
        model: a module with a head: parameters whose names begin with ``head.`` are personal, all
            others are the server's.
        clients: the federation's data.
        config: the run's configuration; ``local_steps`` are those on the body.
        head_steps: SGD steps on the head before them, at least 1.
        seed: keys all randomness of the run, at least 0.
        metrics: as for ``run_fedavg``. It is given the server's body and the initial head.
        eval_every: as for ``run_fedavg``.
        checkpoint: as for ``run_fedavg``. The file holds M heads.
        progress: show a progress bar.
        strategy: as for ``run_fedavg``, but clients cannot be merged.
        loss: as for ``run_fedavg``.
        stop: as for ``run_fedavg``.

    Returns:
        The server's parameters, the history, and every client's own parameters. The loss in the
        history is that of the steps on the body.

    Raises:
        TypeError, ValueError, OSError, FloatingPointError, RuntimeError: as ``run_fedavg``.
        ValueError: if the model has no trainable head, or nothing else that is trainable.

    Example:
        >>> from fedlib import LinearNet
        >>> clients = ClientData(torch.eye(4), torch.tensor([1.0, 0, 0, 3]), np.array([2, 2]))
        >>> config = FedAvgConfig(
        ...     num_rounds=99, local_steps=1, cohort_size=None, batch_size=None, client_lr=0.5
        ... )
        >>> run = dict(head_steps=5, seed=0, progress=False)
        >>> result = run_fedrep(LinearNet(4, 2), clients, config, **run)
        >>> bool(result.history.loss[-1] < 1e-6)
        True

    Reference:
        Collins et al. (2021), Exploiting shared representations for personalized federated
        learning, Algorithm 1. Chapter 15.
    """
    algorithm = fedrep(model, clients, config, head_steps=head_steps, strategy=strategy, loss=loss)
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
    params, heads = result.params, result.state["clients"]
    personal = [
        params | {name: rows[i].clone() for name, rows in heads.items()}
        for i in range(len(clients))
    ]
    return FedRepResult(params, result.history, personal)


def fedrep(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    head_steps: int,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
) -> Algorithm:
    """Return FedRep as an ``Algorithm``; see ``run_fedrep``.

    Its state holds ``params`` and ``clients``, the heads, each with a leading axis of M clients.
    """
    head_steps = check_positive_int("head_steps", head_steps)
    check_round(clients, config, sgd)
    params = params_of(model)
    trainable = trainable_of(model)
    head = [name for name in trainable if name.startswith("head.")]
    body = [name for name in trainable if name not in head]
    if not head or not body:
        where = 'is named "head.…"' if body else 'has another name than "head.…"'
        raise ValueError(
            f"Invalid model: no trainable parameter {where}. Use a model with a body and a head, "
            "as BodyHead, and requires_grad_(True) on both."
        )

    ready = check_model(model, params, clients, loss)
    heads_apart: dict[str, Any] = dict(strategy=strategy, client_params=head)
    on_head = plan(ready, trainable=head, local_steps=[head_steps], **heads_apart)
    steps = step_counts(config, clients)
    on_body = plan(ready, trainable=body, local_steps=steps, merges=True, **heads_apart)

    def init(params: Params) -> State:
        rows = {name: params[name] for name in head}
        return {
            "params": params,
            "clients": {n: repeated(p, len(clients)) for n, p in rows.items()},
        }

    def play(state: State, rng: np.random.Generator) -> tuple[State, dict[str, float]]:
        params, heads = state["params"], state["clients"]
        cohort, batches = draw_round(clients, config, rng=rng, more_steps=head_steps)
        index = torch.as_tensor(cohort, device=clients.device)
        moved = on_head.map(
            clients,
            params,
            cohort,
            [rows[:head_steps] for rows in batches],
            lr=config.client_lr,
            client_params={name: rows[index] for name, rows in heads.items()},
            key=on_head.draw_key(rng),
        ).params
        rest = [rows[head_steps:] for rows in batches]
        key = on_body.draw_key(rng)
        how: dict[str, Any] = dict(lr=config.client_lr, client_params=moved, key=key)
        total = on_body.sum(clients, params, cohort, rest, **how)
        found: dict[str, Any] = {"loss": total.mean_loss}
        if not total.finite():
            found["diverged"] = on_body.diverged(clients, params, cohort, rest, **how)
        average = total.average(params)
        before = {name: params[name] for name in average}
        params = params | server_step(before, average, server_lr=config.server_lr)
        heads = {name: rows.index_copy(0, index, moved[name]) for name, rows in heads.items()}
        return {"params": params, "clients": heads}, found

    identity = identity_of(on_body, clients, config, head_steps=head_steps)
    return Algorithm(init, play, lambda state: state["params"], identity)


def repeated(value: torch.Tensor, times: int) -> torch.Tensor:
    """Return rows of their own, all with this value."""
    return value.expand(times, *value.shape).contiguous()
