"""Federated averaging: its configuration, its round, its run."""

__all__ = [
    "FedAvgConfig",
    "FedAvgResult",
    "draw_round",
    "fedavg",
    "run_fedavg",
    "run_round",
]

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Real
from torch import Tensor, nn

from fedlib._checks import (
    check_array,
    check_callable,
    check_indices,
    check_int,
    check_positive,
    check_positive_int,
    check_rng,
    check_step_size,
    check_type,
    refuse,
    shown,
)
from fedlib.aggregate import server_step
from fedlib.algorithm import Algorithm, History, Metrics, State, run_checked
from fedlib.batches import all_of, draw_batches
from fedlib.checkpoint import leaves_of
from fedlib.clients import ClientData
from fedlib.cohort import Augment, Plan, plan
from fedlib.losses import Loss
from fedlib.models import Params, params_of
from fedlib.rules import LocalStep, sgd
from fedlib.server import ServerRule, fedadam, fedavgm, fedyogi
from fedlib.strategy import Strategy
from fedlib.validate import check_clients, check_model, check_period, check_step, own_modes, probe

CohortRule = Callable[[np.random.Generator, int], "Sequence[int] | np.ndarray"]
"""``(rng, round_num) -> ids`` of the clients that take part; one may stand several times. ``rng``
is keyed by (seed, round), and round_num counts from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAvgConfig:
    """Everything that defines a run of FedAvg, but its data, model and seed.

    ``local_steps=1`` is the one-step baseline, distributed SGD (D-SGD).

    Args:
        num_rounds: rounds T, at least 1.
        local_steps: SGD steps τ of every client in every round, at least 1.
        local_epochs: instead of them, passes over a client's examples, so that clients take
            different numbers of steps: as many as whole batches fit into a pass, times these.
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
    local_steps: int | None = None
    cohort_size: int | None
    batch_size: int | None
    client_lr: float
    server_lr: float = 1.0
    local_epochs: int | None = None

    def __post_init__(self) -> None:
        # Plain Python numbers, so that a configuration can be written as JSON.
        for name in ("num_rounds", "local_steps", "cohort_size", "batch_size"):
            value = getattr(self, name)
            given = value is not None or (name == "local_steps" and self.local_epochs is None)
            if given or name == "num_rounds":
                object.__setattr__(self, name, check_positive_int(name, value))
        if self.local_epochs is not None:
            epochs = check_positive_int("local_epochs", self.local_epochs)
            object.__setattr__(self, "local_epochs", epochs)
            if self.local_steps is not None:
                refuse("local_epochs", epochs, "local_steps is given, too", "one of the two")
        for name in ("client_lr", "server_lr"):
            object.__setattr__(self, name, check_step_size(name, getattr(self, name)))

    def steps_of(self, size: int) -> int:
        """Return how many local steps a client with so many examples takes.

        Example:
            >>> rest = dict(num_rounds=1, cohort_size=None, batch_size=10, client_lr=0.1)
            >>> FedAvgConfig(local_epochs=2, **rest).steps_of(35)
            6
        """
        if self.local_steps is not None:
            return self.local_steps
        size = check_positive_int("size", size)
        assert self.local_epochs is not None  # one of the two is given
        return self.local_epochs * max(1, size // (self.batch_size or size))


class FedAvgResult(NamedTuple):
    """What a run returns.

    Attributes:
        params: the server's parameters after the last round.
        history: loss and metrics of the evaluated rounds.
    """

    params: Params
    history: History


def fedavg(
    model: nn.Module,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    rule: LocalStep = sgd,
    loss: Loss | None = None,
    server_rule: ServerRule | Callable | None = None,
    cohort: CohortRule | None = None,
    strategy: str | Strategy = "auto",
    augment: Augment | None = None,
    weights: Real[np.ndarray, " m"] | None = None,
    lr_schedule: Callable[[int], float] | None = None,
) -> Algorithm:
    """Return FedAvg as an ``Algorithm``, for ``run``, or for a loop of your own.

    A round draws a cohort and its batches, trains the cohort, averages, and steps the server.

    Args:
        model: as for ``run_fedavg``, and so are the others.
        clients: the federation's data.
        config: the run's configuration; its ``num_rounds`` is ``run``'s.
        rule: the clients' rule.
        loss: ``(outputs, targets) -> one loss per example``; None for ``task_loss``.
        server_rule: what the server does with the average, instead of ``server_step``.
        cohort: ``(rng, round_num) -> ids``, in the place of ``config.cohort_size``.
        strategy: how a cohort is run.
        augment: ``(inputs, generator) -> inputs``, applied to every batch of a client.
        weights: weight of each of the M clients in the average, positive; None takes numbers of
            examples.
        lr_schedule: ``round_num -> factor`` of ``config.client_lr``.

    Returns:
        The algorithm. Its state is the server's parameters; with a server rule, a cohort rule or a
        schedule a dict of ``params``, ``server`` (the rule's state) and ``round``.

    Raises:
        TypeError, ValueError: as ``run_fedavg`` before its first round.

    Example:
        >>> from fedlib import LinearNet, run
        >>> clients = ClientData(torch.ones(6, 2), torch.ones(6), np.array([2, 4]))
        >>> config = FedAvgConfig(
        ...     num_rounds=50, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.2
        ... )
        >>> model = LinearNet(2, 1)
        >>> algorithm = fedavg(model, clients, config)
        >>> result = run(algorithm, model, num_rounds=50, seed=0, progress=False)
        >>> bool(result.history.loss[-1] < 1e-6)
        True

    Reference:
        McMahan et al. (2017), Algorithm 1; Chapter 1.
    """
    return _fedavg(**locals())


def _fedavg(
    model, clients, config, *, rule, loss, server_rule, cohort, strategy, augment, weights,
    lr_schedule, params=None, once=False,
) -> Algorithm:  # fmt: skip
    check_round(clients, config, rule)
    ready = check_model(model, params_of(model) if params is None else params, clients, loss)
    planned = plan_rounds(
        ready, config, rule=rule, strategy=strategy, augment=augment, merges=True, once=once
    )
    server = _server_rule(server_rule, config)
    if cohort is not None:
        check_callable("cohort", cohort, "Use a function (rng, round_num) -> ids of clients.")
    if lr_schedule is not None:
        check_callable("lr_schedule", lr_schedule, "Use a function from round_num to a factor.")
        _scaled(config, lr_schedule, 0)
    if weights is not None:
        weights = check_array("weights", weights, (len(clients),)).astype(np.float64)
        if weights.min() <= 0:
            refuse("weights", weights.min(), "not positive", "weights > 0, one for each client")
    counts, plain = cohort is not None or lr_schedule is not None, server is None

    def init(params: Params) -> State:
        if plain and not counts:
            return params
        state: State = {"params": params}
        if counts:
            state["round"] = torch.tensor(0)
        if server is not None:
            moving = {name: params[name] for name in planned.trainable}
            state["server"] = _kept(server.init(moving))
        return state

    def play(state: State, rng: np.random.Generator) -> tuple[State, dict[str, float]]:
        nested = counts or not plain
        params = state["params"] if nested else state
        t = int(state["round"]) if counts else 0
        ids = None if cohort is None else cohort(rng, t)
        drawn, batches = draw_round(clients, config, rng=rng, ids=ids)
        how: dict[str, Any] = dict(
            lr=config.client_lr if lr_schedule is None else _scaled(config, lr_schedule, t),
            weights=None if weights is None else weights[drawn],
            key=planned.draw_key(rng),
        )
        total = planned.sum(clients, params, drawn, batches, **how)
        found: dict[str, Any] = {"loss": total.mean_loss}
        if not total.finite():
            found["diverged"] = planned.diverged(clients, params, drawn, batches, **how)
        average = total.average(params)
        before = {name: params[name] for name in average}
        if server is None:
            moved = server_step(before, average, server_lr=config.server_lr)
        else:
            moved, kept = _updated(server, before, average, state.get("server") or None)
        params = params | moved
        if not nested:
            return params, found
        new: State = {"params": params}
        if counts:
            new["round"] = state["round"] + 1
        if server is not None:
            new["server"] = _kept(kept)
        return new, found

    identity = identity_of(
        planned,
        clients,
        config,
        server_rule=server and server.name,
        cohort=_name(cohort),
        augment=_name(augment),
        weights=None if weights is None else weights.tolist(),
        lr_schedule=None if lr_schedule is None else [_name(lr_schedule), float(lr_schedule(0))],
    )
    return Algorithm(
        init, play, (lambda state: state) if plain and not counts else _params, identity
    )


def _params(state: State) -> Params:
    return state["params"]


def _scaled(config: FedAvgConfig, lr_schedule: Callable[[int], float], t: int) -> float:
    factor = check_positive(f"lr_schedule({t})", lr_schedule(t))
    return check_step_size(f"client_lr * lr_schedule({t})", config.client_lr * factor)


def _name(function: Callable | None) -> str | None:
    """Name a function in a checkpoint's identity."""
    if function is None:
        return None
    return getattr(function, "__qualname__", type(function).__qualname__)


def _server_rule(rule: ServerRule | Callable | None, config: FedAvgConfig) -> ServerRule | None:
    if rule is None or isinstance(rule, ServerRule):
        server = rule
        for field in ("init", "update") if rule else ():
            function = getattr(rule, field)
            check_callable(f"server_rule.{field}", function, "Write it as ServerRule says.")
    elif any(rule is maker for maker in (fedadam, fedavgm, fedyogi)):
        refuse("server_rule", rule, "what makes a rule, not a rule", f"{rule.__name__}()")
    else:
        use = "Use fedadam(0.01), a ServerRule, or a function (params, average, state)."
        check_callable("server_rule", rule, use)
        server = ServerRule(str(_name(rule)), lambda params: None, rule)
    if server is not None and config.server_lr != 1:
        refuse("server_lr", config.server_lr, "the server rule has a step size of its own", "1.0")
    return server


def _kept(state: Any) -> State:
    remedy = "Use tensors by name, in dicts, or None; torch.tensor(0) for a counter, say."
    return {} if state is None else check_type("state of server_rule", state, dict, remedy)


def _updated(
    rule: ServerRule, before: Params, average: Params, kept: State | None
) -> tuple[Params, Any]:
    """Return what a server rule returns, if it is parameters like those before, and a state."""
    pair = "Return (params, state): new tensors by name, and the rule's state or None."
    given = leaves_of({"params": before, "state": kept or {}})
    versions = [tensor._version for tensor in given.values()]
    found = rule.update(before, average, kept)
    for (name, tensor), version in zip(given.items(), versions, strict=True):
        if tensor._version != version:
            raise ValueError(
                f"Invalid server_rule: it writes into {name.removeprefix('/')}, so that a round "
                "that is interrupted would spoil the checkpoint. Return new tensors: v + d * d, "
                "not v.add_(d * d)."
            )
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(f"Invalid server_rule: it returned {shown(found)}. {pair}")
    moved, state = found
    check_type("params returned by server_rule", moved, dict, pair)
    lacking = sorted(before.keys() - moved.keys())
    if lacking:
        raise ValueError(
            f"Invalid params returned by server_rule: {lacking[0]} is missing. Return every name "
            "that it is given."
        )
    for name, p in moved.items():
        old = before.get(name)
        alike = (
            old is not None
            and isinstance(p, Tensor)
            and (p.layout, p.shape, p.dtype, p.device)
            == (old.layout, old.shape, old.dtype, old.device)
        )
        if not alike:
            what = f"params[{name!r}] returned by server_rule"
            raise ValueError(f"Invalid {what}: {shown(p)} is not like the average's. {pair}")
    return moved, state


def check_round(clients: ClientData, config: FedAvgConfig, rule: LocalStep) -> None:
    """Refuse a federation, a configuration and a rule that do not go together."""
    check_clients(clients)
    check_type("config", config, FedAvgConfig, "Use FedAvgConfig(num_rounds=..., ...).")
    check_step(rule)
    if config.local_steps is not None:
        check_period(rule, config.local_steps)
    if config.cohort_size is not None and config.cohort_size > clients.num_clients:
        raise ValueError(
            f"Invalid cohort_size={config.cohort_size}: the federation has {clients.num_clients} "
            f"clients. Use cohort_size <= {clients.num_clients}, or None for all."
        )


def plan_rounds(ready, config: FedAvgConfig, **how) -> Plan:
    """Plan the rounds of a configuration."""
    return plan(ready, local_steps=step_counts(config, ready.clients), **how)


def step_counts(config: FedAvgConfig, clients: ClientData) -> list[int]:
    """Return the numbers of local steps that clients may take."""
    if config.local_steps is not None:  # of a million clients, no size is looked at
        return [config.local_steps]
    return sorted({config.steps_of(size) for size in np.unique(clients.sizes).tolist()})


def identity_of(planned: Plan, clients: ClientData, config: FedAvgConfig, **more: object) -> dict:
    """Return what tells a run of this plan from others."""
    fields = {name: value for name, value in asdict(config).items() if name != "num_rounds"}
    lower = planned.strategy.autocast
    return fields | {
        "step": planned.rule.name,
        "autocast": lower and str(lower),
        "loss": _name(planned.ready.loss),
        "data": lambda: clients.digest,
        "probe": lambda: probe(planned.ready, planned.rule),
        **more,
    }


def draw_round(
    clients: ClientData,
    config: FedAvgConfig,
    *,
    rng: np.random.Generator,
    more_steps: int = 0,
    ids: Sequence[int] | Int[np.ndarray, " m"] | None = None,
) -> tuple[Int[np.ndarray, " m"], list[Int[np.ndarray, "_ _"]]]:
    """Draw a round's cohort, and the batches of each of its clients.

    Args:
        clients: the federation's data.
        config: says how many clients, steps and examples.
        rng: draws; ``np.random.default_rng([seed, t])`` draws what round t of a run does.
        more_steps: batches of every client beside those of its local steps.
        ids: the cohort, if it was drawn already.

    Returns:
        The clients' ids, and an array of positions for each, (local_steps + more_steps, batch).
        More steps change what is drawn for all clients but the first.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the cohort is larger than the federation, empty, or names no client of it,
            or there are too many steps.
    """
    check_round(clients, config, sgd)
    check_rng(rng)
    more_steps = check_int("more_steps", more_steps, minimum=0)
    size = config.cohort_size or clients.num_clients
    if ids is not None:
        cohort = check_indices("cohort", ids, clients.num_clients)
        if not len(cohort):
            refuse("cohort", ids, "no client takes part", "one client at least in every round")
    elif size < clients.num_clients:
        cohort = rng.choice(clients.num_clients, size, replace=False)
    else:
        cohort = np.arange(size)
    full = cache(all_of)  # needs no random numbers
    batches = []
    for size in clients.sizes[cohort].tolist():
        steps = more_steps + config.steps_of(size)
        if config.batch_size is None or size <= config.batch_size:
            batches.append(full(size, steps))
        else:
            batches.append(
                draw_batches(size, local_steps=steps, batch_size=config.batch_size, rng=rng)
            )
    return cohort, batches


def run_round(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    config: FedAvgConfig,
    *,
    rng: np.random.Generator,
    step: LocalStep = sgd,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
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
        loss: one loss per example; see ``run_fedavg``.

    Returns:
        The server's new parameters, and the cohort's mean loss, weighted as the average is.

    Raises:
        TypeError, ValueError: as ``run_fedavg`` before its first round. A model and its data are
            looked at once, and again only when something about them has changed.
    """
    check_rng(rng)
    check_type("params", params, dict, "Use params_of(model), or the params of a result.")
    algorithm = _fedavg(
        model, clients, config, rule=step, loss=loss, server_rule=None, cohort=None,
        strategy=strategy, augment=None, weights=None, lr_schedule=None, params=params, once=True,
    )  # fmt: skip
    with own_modes(clients.device):
        moved, found = algorithm.round(params, rng)
    return moved, found["loss"]


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
    loss: Loss | None = None,
    server_rule: ServerRule | Callable | None = None,
    cohort: CohortRule | None = None,
    stop: Callable[[History], bool] | None = None,
    augment: Augment | None = None,
    weights: Real[np.ndarray, " m"] | None = None,
    lr_schedule: Callable[[int], float] | None = None,
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
        metrics: maps the server's parameters, which it must not change, to numbers by name, or to
            arrays with one number per client; called in the evaluated rounds, with the same names
            each time.
        eval_every: evaluate after every so many rounds, and after the last. (A run that is carried
            further keeps the entry of its earlier end.)
        checkpoint: a file that holds the run. It is written before the first round, after rounds
            as often as 2 % of the time allows, and when the run ends or is stopped, by Ctrl-C or an
            error, with the last round that was completed; the one before stays beside it, as
            ``.previous``. If it is there already, the run goes on from it, perhaps to a larger
            ``num_rounds``. If it is missing,
            damaged or of another run, the run goes on from the previous one, with a warning.
        progress: show a progress bar.
        step: the clients' rule: ``sgd``, ``momentum(0.9)``, ``proximal(0.1)``,
            ``per_fedavg(0.1)``, or your own.
        strategy: how a cohort is run: a name in ``fedlib.strategy.STRATEGIES`` or a ``Strategy``;
            "auto" chooses.
        loss: ``(outputs, targets) -> losses``, one for each example; None for ``task_loss``. Then
            outputs and targets may be of any shape with a row for each example, and the model may
            return several in a tuple or dict. A loss that draws takes a third argument,
            ``generator``, keyed by (seed, round, client, step).
        server_rule: what the server does with the average: ``fedavgm()``, ``fedadam()``,
            ``fedyogi()``, a ``ServerRule``, or a function ``(params, average, state) -> (params,
            state)``, which changes nothing that it is given. ``server_lr`` is 1 then.
        cohort: ``(rng, round_num) -> ids`` of the clients that take part, drawn by a generator
            keyed by (seed, round): availability, or probabilities of your own. It takes the place
            of ``cohort_size``, and may name a client several times.
        stop: ``history -> bool``, asked after every evaluated round; True ends the run.
        augment: ``(inputs, generator) -> inputs`` of a client's batch, with a generator as a
            loss's.
        weights: weight of each of the M clients in averages, positive; None takes numbers of
            examples.
        lr_schedule: ``round_num -> factor`` of ``client_lr``; rounds count from 0.

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
    algorithm = fedavg(
        model,
        clients,
        config,
        rule=step,
        loss=loss,
        server_rule=server_rule,
        cohort=cohort,
        strategy=strategy,
        augment=augment,
        weights=weights,
        lr_schedule=lr_schedule,
    )
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
