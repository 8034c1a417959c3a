r"""The algorithms next to FedAvg, each a small variation of its loop.

Two have rounds of their own, because clients keep something between rounds: ``run_fedrep`` (a
head) and ``run_scaffold`` (a control). The others are FedAvg with other arguments:

===================  ==========================================================================
FedProx              ``run_fedavg(..., step=proximal(mu))``
Per-FedAvg, MAML     ``run_fedavg(..., step=per_fedavg(inner_lr))``, first order
Reptile              ``run_fedavg``, whose ``server_lr`` is Reptile's outer step size, on clients of
                     one size (Reptile does not weight); with ``server_lr=1``, plain FedAvg
D-SGD                ``run_fedavg`` with ``local_steps=1``
centralised SGD      ``run_fedavg(model, clients.pool(), ...)`` with ``cohort_size=None``
local training only  ``fine_tune(model, params_of(model), clients, part="all", ...)``
===================  ==========================================================================
"""

__all__ = ["FedRepResult", "run_fedrep", "run_scaffold"]

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedlib import distributed
from fedlib._checks import check_positive_int
from fedlib.aggregate import server_step
from fedlib.clients import ClientData
from fedlib.engine import Strategy, Trained, resolve_strategy, train_cohort
from fedlib.fedavg import (
    FedAvgConfig,
    FedAvgResult,
    History,
    Metrics,
    draw_round,
    run_rounds,
    train_round,
)
from fedlib.models import Params, params_of
from fedlib.steps import LocalStep, control_variate, sgd
from fedlib.validate import Ready, trainable_of


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
    head_steps = check_positive_int("head_steps", head_steps)
    initial = params_of(model)
    trainable = trainable_of(model)
    head = [name for name in trainable if name.startswith("head.")]
    body = [name for name in trainable if name not in head]
    if not head or not body:
        where = 'is named "head.…"' if body else 'has another name than "head.…"'
        raise ValueError(
            f"Invalid model: no trainable parameter {where}. Use a model with a body and a head, "
            "as BodyHead, and requires_grad_(True) on both."
        )

    def start(params: Params) -> Params:
        return params | {_kept(name): _repeat(params[name], len(clients)) for name in head}

    def play(ready: Ready, state: Params, rng: np.random.Generator) -> tuple[Params, float]:
        cohort, batches = draw_round(
            clients, config, rng=rng, local_steps=head_steps + config.local_steps
        )
        params = {name: state[name] for name in initial}
        index = torch.as_tensor(cohort, device=clients.device)
        run = dict(config=config, strategy=strategy)
        own = _train_apart(
            ready,
            params,
            clients,
            cohort,
            [rows[:head_steps] for rows in batches],
            own={name: state[_kept(name)][index] for name in head},
            trainable=head,
            **run,
        ).params
        params, loss = train_round(
            ready,
            params,
            clients,
            cohort,
            [rows[head_steps:] for rows in batches],
            step=sgd,
            own=own,
            trainable=body,
            **run,
        )
        heads = {_kept(n): state[_kept(n)].index_copy(0, index, own[n]) for n in head}
        return params | heads, loss

    def check(ready: Ready) -> None:
        for names, steps in ((head, head_steps), (body, config.local_steps)):
            resolve_strategy(strategy, ready, sgd, local_steps=steps, trainable=names, own=head)

    state, history = run_rounds(
        play,
        model,
        clients,
        config,
        seed=seed,
        metrics=metrics,
        eval_every=eval_every,
        checkpoint=checkpoint,
        progress=progress,
        step=sgd,
        strategy=strategy,
        check=check,
        start=start,
        head_steps=head_steps,
    )
    params = {name: state[name] for name in initial}
    personal = [
        params | {name: state[_kept(name)][i].clone() for name in head} for i in range(len(clients))
    ]
    return FedRepResult(params, history, personal)


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
) -> FedAvgResult:
    r"""Train ``model`` by SCAFFOLD: FedAvg whose local steps are corrected for drift.

    Every client keeps a control :math:`c_i`, zero at first, an estimate of its gradient at the
    server's parameters :math:`\theta`. It steps along :math:`g-c_i+c`, where :math:`c` is the mean
    of all clients' controls, and ends at :math:`\theta_i`. If it took part, its control becomes
    :math:`c_i-c+(\theta-\theta_i)/(\tau\alpha)`, the mean of the gradients it met ("option II").
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
    initial = params_of(model)
    trainable = trainable_of(model)

    def start(params: Params) -> Params:
        zeros = {name: torch.zeros_like(params[name]) for name in trainable}
        return params | {_kept(name): _repeat(zero, len(clients)) for name, zero in zeros.items()}

    def play(ready: Ready, state: Params, rng: np.random.Generator) -> tuple[Params, float]:
        cohort, batches = draw_round(clients, config, rng=rng, local_steps=config.local_steps)
        params = {name: state[name] for name in initial}
        controls = {name: state[_kept(name)] for name in trainable}
        index = torch.as_tensor(cohort, device=clients.device)
        mean = {name: _mean(rows, clients.sizes) for name, rows in controls.items()}
        correction = {name: mean[name] - rows[index] for name, rows in controls.items()}
        trained = _train_apart(
            ready,
            params,
            clients,
            cohort,
            batches,
            config,
            step=control_variate,
            extra=correction,
            trainable=trainable,
            strategy=strategy,
        )
        average, sizes = {}, clients.sizes[cohort]
        for name, rows in trained.params.items():
            average[name] = _mean(rows, sizes)
            gradient = (params[name] - rows) / (config.local_steps * config.client_lr)
            controls[name] = controls[name].index_copy(0, index, gradient - correction[name])
        moving = {name: params[name] for name in trainable}
        moved = server_step(moving, average, server_lr=config.server_lr)
        kept = {_kept(name): rows for name, rows in controls.items()}
        return params | moved | kept, float(_mean(trained.losses, sizes))

    def check(ready: Ready) -> None:
        resolve_strategy(
            strategy, ready, control_variate, local_steps=config.local_steps,
            trainable=trainable, extra=True,
        )  # fmt: skip

    state, history = run_rounds(
        play,
        model,
        clients,
        config,
        seed=seed,
        metrics=metrics,
        eval_every=eval_every,
        checkpoint=checkpoint,
        progress=progress,
        step=control_variate,
        strategy=strategy,
        check=check,
        start=start,
    )
    return FedAvgResult({name: state[name] for name in initial}, history)


def _kept(name: str) -> str:
    """Name what the clients keep beside a parameter, a tensor with a leading axis of M clients."""
    return f"{name}.clients"  # no parameter is called so: a parameter has no parts


def _repeat(value: Tensor, times: int) -> Tensor:
    return value.expand(times, *value.shape).contiguous()


def _mean(rows: Tensor, weights: np.ndarray) -> Tensor:
    """Return the weighted mean along the first axis, summed in float32 at least."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    shares = torch.as_tensor(weights / weights.sum(), dtype=dtype, device=rows.device)
    return torch.tensordot(shares, rows.to(dtype), 1).to(rows.dtype)


def _train_apart(
    ready: Ready,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " m"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    config: FedAvgConfig,
    *,
    trainable: Collection[str],
    strategy: str | Strategy,
    step: LocalStep = sgd,
    **rows: Params,
) -> Trained:
    """Train a cohort and return every client, in order; every rank gets all of them.

    ``rows`` are ``own`` or ``extra`` of ``train_cohort``. Only trainable parameters are returned.
    """
    mine = distributed.shard(np.array([positions.size for positions in batches]))
    here = torch.as_tensor(mine, device=clients.device)
    everyone = len(cohort)
    moved = {name: params[name].new_zeros(everyone, *params[name].shape) for name in trainable}
    losses = next(iter(moved.values())).new_zeros(everyone)
    if len(mine):
        for some in train_cohort(
            ready,
            params,
            clients,
            cohort[mine],
            [batches[i] for i in mine],
            lr=config.client_lr,
            step=step,
            trainable=trainable,
            strategy=strategy,
            **{key: {n: value[here] for n, value in own.items()} for key, own in rows.items()},
        ):
            places = here[torch.as_tensor(some.places, device=clients.device)]
            losses[places] = some.losses.to(losses.dtype)
            for name in trainable:
                moved[name][places] = some.params[name]
    *values, losses = distributed.all_sum([*moved.values(), losses])  # zero but for one rank's
    moved = dict(zip(moved, values, strict=True))
    return Trained(np.arange(everyone), moved, losses, clients.sizes[cohort].astype(np.float64))
