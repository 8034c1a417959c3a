"""Federated averaging: configuration, one round, the loop."""

__all__ = [
    "FedAvgConfig",
    "FedAvgResult",
    "History",
    "Metrics",
    "draw_round",
    "run_fedavg",
    "run_round",
    "run_rounds",
    "train_round",
]

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import nn
from tqdm.auto import tqdm

from fedlib import distributed
from fedlib._checks import (
    check_bool,
    check_int,
    check_positive_int,
    check_rng,
    check_step_size,
    check_type,
    refuse,
)
from fedlib.aggregate import server_step
from fedlib.batches import all_of, draw_batches
from fedlib.checkpoint import Checkpoint, RunState, run_identity
from fedlib.clients import ClientData
from fedlib.engine import Strategy, Trained, resolve_strategy, train_cohort
from fedlib.models import Params, params_of
from fedlib.steps import LocalStep, sgd
from fedlib.validate import (
    Ready,
    check_clients,
    check_model,
    check_period,
    check_step,
    own_modes,
    probe,
    trainable_of,
)

Metrics = Callable[[Params], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAvgConfig:
    """Everything that defines a run of FedAvg, but its data, model and seed.

    ``local_steps=1`` is the one-step baseline, distributed SGD (D-SGD).

    Args:
        num_rounds: rounds T, at least 1.
        local_steps: SGD steps τ of every client in every round, at least 1.
        cohort_size: clients m drawn in each round, without replacement; None takes all.
        batch_size: examples per local step; None takes all of a client's examples, and a client
            with fewer uses all it has.
        client_lr: step size α of the local steps, positive.
        server_lr: step size β of the server; 1, plain averaging, unless given.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if a value is out of range.

    Example:
        >>> config = FedAvgConfig(
        ...     num_rounds=3, local_steps=5, cohort_size=2, batch_size=4, client_lr=0.1
        ... )
        >>> config.server_lr
        1.0

    Reference:
        McMahan et al. (2017), Algorithm 1; Collins et al. (2022). Chapter 1.
    """

    num_rounds: int
    local_steps: int
    cohort_size: int | None
    batch_size: int | None
    client_lr: float
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        # Plain Python numbers, so that a configuration can be written as JSON.
        for name in ("num_rounds", "local_steps", "cohort_size", "batch_size"):
            value = getattr(self, name)
            if value is not None or name in ("num_rounds", "local_steps"):
                object.__setattr__(self, name, check_positive_int(name, value))
        for name in ("client_lr", "server_lr"):
            object.__setattr__(self, name, check_step_size(name, getattr(self, name)))


@dataclass(frozen=True)
class History:
    """What was recorded on the way; arrays of equal length, one entry per evaluated round.

    ``history["name"]`` is the series of the metric of that name.

    Attributes:
        round_num: rounds completed when the entry was made, int64.
        loss: mean loss of the cohort's local steps in that round, float64.
        metrics: the series returned by ``metrics``, float64 each.
    """

    round_num: np.ndarray
    loss: np.ndarray
    metrics: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.round_num)

    def __getitem__(self, name: str) -> np.ndarray:
        if not isinstance(name, str) or name not in self.metrics:
            use = " or ".join(map(repr, self.metrics)) or "metrics= to record some"
            refuse("name", name, "no metric of this history", use, error=KeyError)
        return self.metrics[name]

    @classmethod
    def of(cls, entries: list[dict]) -> "History":
        """Turn entries, each with ``round_num``, ``loss`` and a dict ``metrics``, into arrays."""
        return cls(
            np.array([entry["round_num"] for entry in entries], dtype=np.int64),
            np.array([entry["loss"] for entry in entries], dtype=np.float64),
            {
                name: np.array([entry["metrics"][name] for entry in entries], dtype=np.float64)
                for name in entries[0]["metrics"]
            },
        )


class FedAvgResult(NamedTuple):
    """What a run returns.

    Attributes:
        params: the server's parameters after the last round.
        history: loss and metrics of the evaluated rounds.
    """

    params: Params
    history: History


def run_round(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    rng: np.random.Generator,
    step: LocalStep = sgd,
    strategy: str | Strategy = "auto",
) -> tuple[Params, float]:
    """Run one round: draw a cohort, train it locally, average, step the server.

    The cohort and every batch are drawn before any client runs, so that the result does not depend
    on how the cohort is run. Ranks that joined (``fedlib.distributed``) each train a share of it.

    Args:
        model: gives the architecture.
        params: the server's parameters.
        clients: the federation's data.
        config: the run's configuration.
        rng: draws the cohort and the batches.
        step: the clients' rule; see ``run_fedavg``.
        strategy: how to run the cohort; see ``run_fedavg``.

    Returns:
        The server's new parameters, and the cohort's mean loss, weighted as the average is.

    Raises:
        TypeError, ValueError: as ``run_fedavg`` before its first round. A model and its data are
            looked at once, and again only when something about them has changed.
    """
    check_rng(rng)
    _check_round(clients, config, step)
    ready = check_model(model, params, clients)
    found = ready.verdict.found
    ready.warned = found.get("warned", False)  # rounds come in loops
    with own_modes(clients.device):
        played = _play(ready, params, clients, config, rng=rng, step=step, strategy=strategy)
    found["warned"] = ready.warned
    return played


def _play(
    ready: Ready,
    params: Params,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    rng: np.random.Generator,
    step: LocalStep,
    strategy: str | Strategy,
) -> tuple[Params, float]:
    """Run a round of what was checked."""
    cohort, batches = draw_round(clients, config, rng=rng, local_steps=config.local_steps)
    strategy = _for_a_round(strategy, config, step)
    return train_round(
        ready, params, clients, cohort, batches, config, step=step, strategy=strategy
    )


def _for_a_round(strategy: str | Strategy, config: FedAvgConfig, step: LocalStep) -> str | Strategy:
    automatic = isinstance(strategy, str) and strategy == "auto"
    return "merged" if automatic and config.local_steps == 1 and step == sgd else strategy


def draw_round(
    clients: ClientData, config: FedAvgConfig, *, rng: np.random.Generator, local_steps: int
) -> tuple[Int[np.ndarray, " m"], list[Int[np.ndarray, "_ _"]]]:
    """Draw a round's cohort, and ``local_steps`` batches for each of its clients."""
    size = config.cohort_size or clients.num_clients
    if size < clients.num_clients:
        cohort = rng.choice(clients.num_clients, size, replace=False)
    else:
        cohort = np.arange(size)
    draw = partial(draw_batches, local_steps=local_steps, batch_size=config.batch_size, rng=rng)
    full = cache(partial(all_of, local_steps=local_steps))  # needs no random numbers
    batches = [
        (full if config.batch_size is None or size <= config.batch_size else draw)(size)
        for size in clients.sizes[cohort].tolist()
    ]
    return cohort, batches


def train_round(
    ready: Ready,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " m"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    config: FedAvgConfig,
    *,
    step: LocalStep,
    strategy: str | Strategy,
    own: Params | None = None,
    trainable: Collection[str] | None = None,
) -> tuple[Params, float]:
    """Train a cohort, average, step the server: a round after its draws.

    ``ready`` is what ``check_model`` returned. ``own`` and ``trainable`` are those of
    ``train_cohort``; the rest, and what is returned, are those of ``run_round``.
    """
    trainable = trainable_of(ready.model) if trainable is None else trainable
    trainable = sorted(trainable)  # in one order on all ranks, whatever the collection
    mine = distributed.shard(np.array([rows.size for rows in batches]))
    if len(mine):
        totals = train_cohort(
            ready,
            params,
            clients,
            cohort[mine],
            [batches[i] for i in mine],
            lr=config.client_lr,
            step=step,
            own=own and {name: rows[torch.as_tensor(mine)] for name, rows in own.items()},
            trainable=trainable,
            strategy=strategy,
            then=partial(Trained.total, names=trainable),
        )
    else:  # more ranks than clients
        alone = {name: p[None] for name, p in params.items()}
        loss = next(iter(params.values())).new_zeros(1)
        totals = [Trained(mine, alone, loss, np.zeros(1)).total(trainable)]
    weight = float(clients.sizes[cohort].sum())
    sums, loss = totals[0]
    for other, other_loss in totals[1:]:
        sums = {name: total.add_(other[name]) for name, total in sums.items()}
        loss = loss + other_loss
    *values, loss = distributed.all_sum([*sums.values(), loss])
    average = {
        name: (total / weight).to(params[name].dtype)
        for name, total in zip(sums, values, strict=True)
    }
    before = {name: params[name] for name in average}
    return params | server_step(before, average, server_lr=config.server_lr), float(loss) / weight


def run_fedavg(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    seed: int,
    metrics: Metrics | None = None,
    eval_every: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    step: LocalStep = sgd,
    strategy: str | Strategy = "auto",
) -> FedAvgResult:
    """Train ``model`` on a federation by FedAvg, from the model's current parameters.

    The model itself is not changed. Round t draws its cohort and batches from a generator keyed by
    (seed, t) alone: the same seed gives the same result, and a resumed run the result of one that
    was never stopped, to the last bit on the same machine with as many threads
    (``OMP_NUM_THREADS``), and up to rounding elsewhere.

    Several processes may run it together, each on a share of every cohort, once they have joined
    (``fedlib.distributed``). All return the same bits. Then ``metrics`` is called, and the
    checkpoint read and written, on rank 0 alone.

    Args:
        model: any module that is a pure function of its parameters (no dropout, no batch
            normalisation in training mode). It needs no ``body`` and ``head`` here, only when a
            part of it is fine-tuned. Parameters without ``requires_grad`` stay as they are.
        clients: the federation's data, with inputs of the model's dtype and device.
        config: the run's configuration.
        seed: keys all randomness of the run, at least 0.
        metrics: maps the server's parameters, which it must not change, to numbers by name;
            called in the evaluated rounds, with the same names each time.
        eval_every: evaluate after every so many rounds, and after the last. (A run that is carried
            further keeps the entry of its earlier end.)
        checkpoint: a file that holds the run. It is written before the first round, after rounds
            as often as 2 % of the time allows, and when the run ends or is stopped, by Ctrl-C or an
            error, with the last round that was completed; the one before stays beside it, as
            ``.previous``. If it is there already, the run goes on from it. If it is missing,
            damaged or of another run, the run goes on from the previous one, with a warning.
        progress: show a progress bar.
        step: the clients' rule: ``sgd``, ``momentum(0.9)``, ``proximal(0.1)``,
            ``per_fedavg(0.1)``, or your own.
        strategy: how a cohort is run: a name in ``fedlib.engine.STRATEGIES`` or a ``Strategy``;
            "auto" chooses.

    Returns:
        Final parameters and history.

    Raises:
        TypeError: before the first round, if an argument is of another type; later, if ``metrics``
            returns anything but numbers by name.
        ValueError: before the first round, if an argument, the data and the model do not fit, or
            neither the checkpoint nor the previous one is whole and of this run, or it is further
            than ``num_rounds``, or ranks were given different runs.
        OSError: if the checkpoint cannot be written, which shows before the first round, or when
            the disk is full; what was written before is intact.
        FloatingPointError: if the loss or the parameters stop being finite.
        RuntimeError: if another rank stopped.

    Example:
        >>> import torch
        >>> from fedlib import LinearNet
        >>> clients = ClientData(torch.ones(6, 2), torch.ones(6), np.array([2, 4]))
        >>> config = FedAvgConfig(
        ...     num_rounds=50, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.2
        ... )
        >>> result = run_fedavg(LinearNet(2, 1), clients, config, seed=0, progress=False)
        >>> bool(result.history.loss[-1] < 1e-6)
        True

    Reference:
        McMahan et al. (2017), Algorithm 1; Chapter 1.
    """
    state, history = run_rounds(
        lambda ready, params, rng: _play(
            ready, params, clients, config, rng=rng, step=step, strategy=strategy
        ),
        model,
        clients,
        config,
        seed=seed,
        metrics=metrics,
        eval_every=eval_every,
        checkpoint=checkpoint,
        progress=progress,
        step=step,
        strategy=strategy,
        check=lambda ready: resolve_strategy(
            _for_a_round(strategy, config, step),
            ready,
            step,
            local_steps=config.local_steps,
            trainable=trainable_of(model),
        ),
    )
    return FedAvgResult(state, history)


def run_rounds(
    play: Callable[[Ready, Params, np.random.Generator], tuple[Params, float]],
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    seed: int,
    metrics: Metrics | None,
    eval_every: int,
    checkpoint: str | Path | None,
    progress: bool,
    step: LocalStep,
    strategy: str | Strategy,
    check: Callable[[Ready], object],
    start: Callable[[Params], Params] = dict,
    **more: object,
) -> tuple[Params, History]:
    """Run the rounds of any algorithm: checks, loop, history, checkpoints.

    Args:
        play: ``(ready, state, rng) -> (state, loss)``, one round of the model that was found ready;
            what it returns is new. A state holds the server's parameters, and whatever else the
            algorithm keeps, by name.
        model: as for ``run_fedavg``, and so are the others.
        clients: the federation's data.
        config: the run's configuration.
        seed: keys all randomness of the run.
        metrics: maps the server's parameters to numbers by name.
        eval_every: evaluate after every so many rounds.
        checkpoint: a file that holds the run.
        progress: show a progress bar.
        step: the clients' rule.
        strategy: how a cohort is run.
        check: looks at whether the model can be run so, before the first round.
        start: ``params -> state``, the state before the first round.
        **more: what else tells the run from others, JSON values.

    Returns:
        The state after the last round, and the history.

    Raises:
        TypeError, ValueError, OSError, FloatingPointError, RuntimeError: as ``run_fedavg``.
    """
    eval_every = check_positive_int("eval_every", eval_every)
    seed = check_int("seed", seed, minimum=0)
    progress = check_bool("progress", progress)
    _check_round(clients, config, step)
    if metrics is not None and not callable(metrics):
        raise TypeError(
            f"Invalid metrics of type {type(metrics).__name__}: not callable. "
            "Use a function from the server's parameters to a dict of numbers by name."
        )
    params = params_of(model)
    ready = check_model(model, params, clients)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("Invalid model: no parameter is trainable. Use requires_grad_(True).")
    check(ready)
    with own_modes(clients.device):
        state = RunState(0, start(params), [])
    rank, num_ranks = distributed.rank()
    if checkpoint is not None or num_ranks > 1:
        lower = None if isinstance(strategy, str) else strategy.autocast
        how = dict(step=step.name, autocast=lower and str(lower))
        identity = run_identity(asdict(config), seed, model, clients, **how, **more)
        rest = dict(num_rounds=config.num_rounds, eval_every=eval_every)
        distributed.check_same(identity | rest)
    if rank > 0:
        checkpoint = None
    if checkpoint is not None:
        checkpoint = Checkpoint(checkpoint, identity | {"probe": probe(ready, step)})
        state = checkpoint.load(device=clients.device) or state
        first, ends = state.round_num, [entry["round_num"] for entry in state.entries]
        least = first if first in ends else first + 1
        if config.num_rounds < least:
            raise ValueError(
                f"Invalid num_rounds={config.num_rounds}: checkpoint {checkpoint.path} is at round "
                f"{first}. Use num_rounds >= {least}, or another path."
            )
        if first < config.num_rounds:  # shows before the first round that it can be written
            checkpoint.save(state)
    state = RunState(*distributed.from_first(tuple(state), device=clients.device))

    try:
        rounds = range(state.round_num, config.num_rounds)
        for t in tqdm(rounds, desc="rounds", disable=not progress or rank > 0):
            rng, entries = np.random.default_rng([seed, t]), state.entries
            with own_modes(clients.device):
                played, loss = play(ready, state.params, rng)
            if not np.isfinite(loss) or not all(bool(p.isfinite().all()) for p in played.values()):
                raise FloatingPointError(
                    f"Training diverged in round {t + 1}: the mean local loss is {loss}. "
                    f"Use a client_lr smaller than {config.client_lr}."
                )
            if (t + 1) % eval_every == 0 or t + 1 == config.num_rounds:
                server = {name: played[name] for name in params}
                measured = _measure(metrics, server, entries) if rank == 0 else {}
                measured = distributed.from_first(measured)
                entries = [*entries, {"round_num": t + 1, "loss": loss, "metrics": measured}]
            state = RunState(t + 1, played, entries)  # at once: an interrupt finds a whole state
            if checkpoint is not None:
                checkpoint.save_if_due(state)
    finally:
        if checkpoint is not None and checkpoint.saved < state.round_num:
            checkpoint.save(state)
    return state.params, History.of(state.entries)


def _measure(metrics: Metrics | None, params: Params, entries: list[dict]) -> dict[str, float]:
    measured = {} if metrics is None else metrics(params)
    try:
        measured = {"" + name: float(value) for name, value in measured.items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise TypeError(
            f"Invalid metrics: they returned {measured!r}. Return a dict of numbers by name."
        ) from error
    if entries and entries[-1]["metrics"].keys() != measured.keys():
        raise ValueError(
            f"Invalid metrics: {sorted(measured)} now, {sorted(entries[-1]['metrics'])} "
            "before. Return the same names in every round, and after resuming."
        )
    return measured


def _check_round(clients: ClientData, config: FedAvgConfig, step: LocalStep) -> None:
    check_clients(clients)
    check_type("config", config, FedAvgConfig, "Use FedAvgConfig(num_rounds=..., ...).")
    check_period(check_step(step), config.local_steps)
    if config.cohort_size is not None and config.cohort_size > clients.num_clients:
        raise ValueError(
            f"Invalid cohort_size={config.cohort_size}: the federation has {clients.num_clients} "
            f"clients. Use cohort_size <= {clients.num_clients}, or None for all."
        )
