"""A round's cohort: its clients' local steps, kept apart or summed, by every strategy and rank."""

__all__ = ["ClientParams", "Plan", "WeightedSum", "map_clients", "plan", "sum_clients"]

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedlib import distributed
from fedlib._checks import (
    check_array,
    check_callable,
    check_names,
    check_rng,
    check_step_size,
    check_type,
    refuse,
    shown,
)
from fedlib.batches import Batch, gather, merge_batches, stack_batches
from fedlib.clients import ClientData
from fedlib.compiled import compiled_loop
from fedlib.keys import AUGMENT, LOSS, Keys, per_client, takes_generator
from fedlib.local import LocalResult, check_batches, local_update, sgd_loop
from fedlib.losses import Loss, batch_loss, stacked_losses
from fedlib.models import Params
from fedlib.rules import LocalStep, sgd
from fedlib.strategy import ROOM, ROOM_ON_GPU, Strategy, resolve_strategy
from fedlib.validate import Ready, check_model, own_modes, trainable_of

T = TypeVar("T")

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``(inputs, generator) -> inputs`` of a client's batch, of the same shape and dtype, drawn by a
generator on the CPU that is its own for each client and step."""


class WeightedSum(NamedTuple):
    r"""Sums over clients, :math:`\sum_i p_i\theta_i`, in float32 at least.

    Attributes:
        params: sums of the clients' parameters, of those that moved.
        loss: sum of their mean batch losses, scalar tensor.
        weight: sum of their weights :math:`p_i`.
    """

    params: Params
    loss: Float[Tensor, ""]
    weight: float

    def average(self, like: Params) -> Params:
        """Return the weighted average of those parameters that moved, in the dtypes of ``like``."""
        check_type("like", like, dict, "Use the parameters that the clients started from.")
        for name in self.params:
            remedy = "Use the parameters that the clients started from."
            check_type(f"like[{name!r}]", like.get(name), Tensor, remedy)
        return {n: (total / self.weight).to(like[n].dtype) for n, total in self.params.items()}

    @property
    def mean_loss(self) -> float:
        """The weighted mean of the losses."""
        return float(self.loss) / self.weight

    def finite(self) -> bool:
        """Tell whether all sums are."""
        return all(bool(part.isfinite().all()) for part in (self.loss, *self.params.values()))


class ClientParams(NamedTuple):
    """Clients after their local steps, one row each.

    Attributes:
        params: the parameters that moved, each with a leading axis of k clients.
        losses: mean batch losses, each before its step, shape (k,).
        weights: the clients' weights, float64 of shape (k,).
    """

    params: Params
    losses: Float[Tensor, " k"]
    weights: Float[np.ndarray, " k"]

    def sum(self) -> WeightedSum:
        """Return the clients' weighted sums."""
        shares = torch.as_tensor(self.weights, device=self.losses.device)
        sums = {name: _weighted(shares, rows) for name, rows in self.params.items()}
        return WeightedSum(sums, _weighted(shares, self.losses), float(self.weights.sum()))

    def finite(self) -> Bool[np.ndarray, " k"]:
        """Tell which clients' losses and parameters are finite."""
        rows = [self.losses[:, None], *(rows.flatten(1) for rows in self.params.values())]
        return torch.stack([r.isfinite().all(1) for r in rows]).all(0).cpu().numpy()


def _weighted(shares: Tensor, rows: Tensor) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.tensordot(shares.to(dtype), rows.to(dtype), 1)


def map_clients(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " m"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    *,
    lr: float,
    rule: LocalStep = sgd,
    client_params: Params | None = None,
    client_state: Params | None = None,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
    augment: Augment | None = None,
    trainable: Collection[str] | None = None,
    weights: Real[np.ndarray, " m"] | None = None,
    rng: np.random.Generator | None = None,
) -> ClientParams:
    """Run the local steps of every client of a cohort, and return each client's parameters.

    Ranks that joined (``fedlib.distributed``) each train a share; all are given all rows.

    Args:
        model: gives the architecture.
        params: the server's parameters, where clients start.
        clients: the federation's data.
        cohort: ids of the clients that take part; one may stand several times.
        batches: one array of positions, (local_steps, batch), per client of the cohort, as
            ``draw_batches`` draws them; clients may take different numbers of steps.
        lr: step size α.
        rule: what a local step does.
        client_params: parameters that each client has for itself, which take the place of the
            server's; each with a leading axis of m clients. A personal head, say.
        client_state: given to the rule's ``init``: one tensor per trainable parameter, each with a
            leading axis of m clients. SCAFFOLD's corrections, say.
        strategy: a name in ``STRATEGIES``, a ``Strategy``, or "auto", which runs clients one by
            one, with a warning, if they cannot be stacked.
        loss: ``(outputs, targets) -> one loss per example``; None for ``task_loss``.
        augment: ``(inputs, generator) -> inputs``, applied to every batch of a client.
        trainable: names of the parameters that move; None moves those with ``requires_grad``.
        weights: weight of each client in a sum; None takes numbers of examples.
        rng: keys what rule, loss and augmentation draw, if they do; one number is taken from it.

    Returns:
        The parameters that moved, losses and weights, one row per client, in the cohort's order.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the model, its parameters and the data do not fit, an argument does not have
            one row per client, a position is not the client's, a number of local steps is no
            multiple of the rule's period, or clients cannot be run as the strategy says.

    Example:
        >>> from fedlib import LinearNet, params_of
        >>> clients = ClientData(torch.ones(3, 2), torch.ones(3), np.array([1, 2]))
        >>> model, rows = LinearNet(2, 1), [np.array([[0]]), np.array([[0, 1]])]
        >>> moved = map_clients(model, params_of(model), clients, np.array([0, 1]), rows, lr=0.1)
        >>> moved.params["head.weight"].shape
        torch.Size([2, 1, 1])
    """
    arguments = locals()
    return _planned(merges=False, **arguments)


def sum_clients(
    model: nn.Module,
    params: Params,
    clients: ClientData,
    cohort: Int[np.ndarray, " m"],
    batches: Sequence[Int[np.ndarray, "_ _"]],
    *,
    lr: float,
    rule: LocalStep = sgd,
    client_params: Params | None = None,
    client_state: Params | None = None,
    strategy: str | Strategy = "auto",
    loss: Loss | None = None,
    augment: Augment | None = None,
    trainable: Collection[str] | None = None,
    weights: Real[np.ndarray, " m"] | None = None,
    rng: np.random.Generator | None = None,
) -> WeightedSum:
    """Run the local steps of a cohort's clients, and return their weighted sum only.

    Cheaper than ``map_clients``: no client's parameters are kept, ranks send one sum, and with one
    step of SGD "auto" takes one gradient for all ("merged").

    Args:
        model: as for ``map_clients``, and so are the others.
        params: the server's parameters.
        clients: the federation's data.
        cohort: ids of the clients that take part.
        batches: one array of positions per client of the cohort.
        lr: step size α.
        rule: what a local step does.
        client_params: parameters that each client has for itself.
        client_state: given to the rule's ``init``.
        strategy: how to run the cohort.
        loss: one loss per example.
        augment: applied to every batch.
        trainable: names of the parameters that move.
        weights: weight of each client; None takes numbers of examples.
        rng: keys what is drawn in steps.

    Returns:
        Sums of parameters, losses and weights; ``average`` divides.

    Raises:
        TypeError, ValueError: as ``map_clients``.

    Example:
        >>> from fedlib import LinearNet, params_of
        >>> clients = ClientData(torch.ones(3, 2), torch.ones(3), np.array([1, 2]))
        >>> model, rows = LinearNet(2, 1), [np.array([[0]]), np.array([[0, 1]])]
        >>> params = params_of(model)
        >>> total = sum_clients(model, params, clients, np.array([0, 1]), rows, lr=0.1)
        >>> total.weight, total.average(params)["head.weight"].shape
        (3.0, torch.Size([1, 1]))
    """
    arguments = locals()
    return _planned(merges=True, **arguments)


def _planned(
    model, params, clients, cohort, batches, *, lr, rule, client_params, client_state, strategy,
    loss, augment, trainable, weights, rng, merges,
) -> Any:  # fmt: skip
    lr = check_step_size("lr", lr)
    ready = check_model(model, params, clients, loss)
    cohort, batches = _check_positions(clients, cohort, batches)
    trainable = trainable_of(model) if trainable is None else check_names("trainable", trainable)
    if weights is not None:
        weights = check_array("weights", weights)
        if weights.ndim != 1:
            raise ValueError(f"Invalid weights: its shape is {weights.shape}. Use one row.")
    _check_rows(params, cohort, batches, weights, client_params, client_state, trainable)
    if rng is not None:
        check_rng(rng)
    planned = plan(
        ready,
        rule=rule,
        augment=augment,
        trainable=trainable,
        strategy=strategy,
        local_steps=sorted({len(rows) for rows in batches}),
        client_params=client_params or (),
        client_state=client_state is not None,
        merges=merges,
        once=True,
    )
    run = planned.sum if merges else planned.map
    with own_modes(clients.device):
        return run(
            clients, params, cohort, batches, lr=lr, weights=weights, client_params=client_params,
            client_state=client_state, key=planned.draw_key(rng),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """What is checked once and holds for every cohort: model, rule, what moves, how clients run.

    ``map`` and ``sum`` do what ``map_clients`` and ``sum_clients`` tell, without checking again.
    """

    ready: Ready
    rule: LocalStep
    augment: Augment | None
    trainable: list[str]
    strategy: Strategy
    draws: bool

    def draw_key(self, rng: np.random.Generator | None) -> int | None:
        """Draw what keys a round's steps, if something in them draws.

        Raises:
            ValueError: if something does, but there is no generator.
        """
        if not self.draws:
            return None
        if rng is None:
            refuse("rng", rng, "rule, loss or augmentation draw", "rng=np.random.default_rng(0)")
        return int(rng.integers(2**63))

    def map(self, clients: ClientData, params: Params, cohort, batches, **how) -> ClientParams:
        """Train a cohort; return one row per client, the same on every rank."""
        cohort = _Cohort(self, clients, params, cohort, batches, **how)
        everyone = len(cohort.ids)
        moved = {n: params[n].new_zeros(everyone, *params[n].shape) for n in self.trainable}
        losses = next(iter(moved.values())).new_zeros(everyone)
        for places, job in cohort.run(lambda places: (places, cohort.train(places))):
            here = torch.as_tensor(places, device=losses.device)
            losses[here] = job.losses.to(losses.dtype)
            for name, rows in moved.items():
                rows[here] = job.params[name]
        *values, losses = distributed.all_reduce([*moved.values(), losses])  # zero but for one's
        return ClientParams(dict(zip(moved, values, strict=True)), losses, cohort.weights)

    def sum(self, clients: ClientData, params: Params, cohort, batches, **how) -> WeightedSum:
        """Train a cohort; return the weighted sum of its clients, the same bits on every rank."""
        cohort = _Cohort(self, clients, params, cohort, batches, **how)
        total = cohort.merge if self.strategy.merge else lambda places: cohort.train(places).sum()
        jobs = cohort.run(total)
        if not jobs:  # more ranks than clients
            none = {n: params[n][None] for n in self.trainable}
            jobs = [ClientParams(none, next(iter(none.values())).new_zeros(1), np.zeros(1)).sum()]
        sums, loss, _ = jobs[0]
        for other in jobs[1:]:
            sums = {name: total.add_(other.params[name]) for name, total in sums.items()}
            loss = loss + other.loss
        *values, loss = distributed.all_reduce([*sums.values(), loss])
        sums = dict(zip(sums, values, strict=True))
        return WeightedSum(sums, loss, float(cohort.weights.sum()))

    def diverged(self, clients: ClientData, params: Params, cohort, batches, **how) -> list[int]:
        """Train a cohort on this rank alone; return ids of clients that are no longer finite."""
        one_by_one = replace(self.strategy, merge=False, stack=False, compile=False)
        cohort = _Cohort(
            replace(self, strategy=one_by_one), clients, params, cohort, batches, **how
        )

        def ill(places: np.ndarray) -> list[int]:
            return cohort.ids[places][~cohort.train(places).finite()].tolist()

        return sorted({i for job in cohort.run(ill, np.arange(len(cohort.ids))) for i in job})

    def train_here(self, clients: ClientData, params: Params, cohort, batches, **how) -> list:
        """Train a cohort on this rank alone; return (places, ClientParams) of each job."""
        cohort = _Cohort(self, clients, params, cohort, batches, **how)
        everyone = np.arange(len(cohort.ids))
        return cohort.run(lambda places: (places, cohort.train(places)), everyone)


def plan(
    ready: Ready,
    *,
    rule: LocalStep = sgd,
    augment: Augment | None = None,
    trainable: Collection[str] | None = None,
    strategy: str | Strategy = "auto",
    local_steps: Sequence[int],
    client_params: Collection[str] = (),
    client_state: bool = False,
    merges: bool = False,
    once: bool = False,
) -> Plan:
    """Check how clients of a federation can be trained, and choose a strategy; see ``Plan``.

    Args:
        ready: the model, as ``check_model`` found it fit for the data, with its loss.
        rule: the local rule.
        augment: applied to every batch.
        trainable: names of the parameters that move; None moves those with ``requires_grad``.
        strategy: how cohorts are run.
        local_steps: the numbers of steps that clients may take.
        client_params: names of the parameters that each client has for itself.
        client_state: whether the rule's ``init`` is given something.
        merges: only sums are wanted, so that clients may be merged.
        once: tell only once for each model that its clients cannot be stacked.

    Raises:
        TypeError, ValueError: as ``map_clients``.
    """
    if trainable is None:
        trainable = trainable_of(ready.model)
        if not trainable:
            raise ValueError("Invalid model: no parameter is trainable. Use requires_grad_(True).")
    if augment is not None:
        check_callable("augment", augment, "Use a function (inputs, generator) -> inputs.")
    apart = augment is not None or (ready.loss is not None and takes_generator(ready.loss))
    chosen = resolve_strategy(
        strategy,
        ready,
        rule,
        local_steps=local_steps,
        trainable=list(trainable),
        client_params=client_params,
        client_state=client_state,
        merges=merges and not apart,
        once=once,
    )
    names = [name for name in ready.params if name in set(trainable)]
    draws = apart or takes_generator(rule.update)
    return Plan(ready, rule, augment, names, chosen, draws)


def _check_positions(
    clients: ClientData, cohort: np.ndarray, batches: Sequence[np.ndarray]
) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    cohort = check_array("cohort", cohort, kinds="iu")
    if cohort.ndim != 1 or (len(cohort) and not 0 <= cohort.min() <= cohort.max() < len(clients)):
        raise ValueError(
            f"Invalid cohort={cohort.tolist()}: the federation's clients are 0 to "
            f"{len(clients) - 1}. Use ids of clients."
        )
    rows = isinstance(batches, np.ndarray) and batches.ndim == 3
    if not (rows or isinstance(batches, Sequence)) or isinstance(batches, str | bytes):
        use = "a list with what draw_batches returns for each client"
        refuse("batches", batches, "not a list of arrays", use, error=TypeError)
    sizes = clients.sizes[cohort].tolist()
    if len(sizes) == len(batches):
        batches = [check_batches(*own) for own in zip(batches, sizes, strict=True)]
    return cohort, batches


def _check_rows(
    params: Params,
    cohort: np.ndarray,
    batches: Sequence[np.ndarray],
    weights: np.ndarray | None,
    client_params: Params | None,
    client_state: Params | None,
    trainable: Collection[str],
) -> None:
    remedy = "Use a dict of tensors by the names of parameters, or None."
    own = {} if client_params is None else check_type("client_params", client_params, dict, remedy)
    state = {} if client_state is None else check_type("client_state", client_state, dict, remedy)
    for argument, tensors in {"client_params": own, "client_state": state}.items():
        for name, rows in tensors.items():
            check_type(f"{argument}[{name!r}]", rows, Tensor, remedy)
    given = [] if weights is None else [("weights", weights)]
    for name, values in [("batches", batches), *given, *state.items(), *own.items()]:
        if len(values) != len(cohort) or len(cohort) == 0:
            raise ValueError(
                f"Invalid {name} of {len(values)} rows: the cohort has {len(cohort)} clients. Give "
                "one row for each client, and at least one client."
            )
    lacking = [name for name in trainable if client_state is not None and name not in state]
    if lacking:
        raise ValueError(
            f"Invalid client_state: {lacking[0]} is missing. Give one tensor for each trainable "
            "parameter."
        )
    for argument, names in {"trainable": trainable, "client_params": own}.items():
        unknown = [name for name in names if name not in params]
        if unknown:
            raise ValueError(
                f"Invalid {argument}: {unknown[0]} is no parameter. Use names of params."
            )
    for name, rows in own.items():
        p = params[name]
        if rows.shape[1:] != p.shape or _kind(rows) != _kind(p):
            _refuse_rows(f"client_params[{name!r}]", rows, p)
    for name in trainable if state else ():
        rows, p = state[name], params[name]
        # What is broadcast along the axes of a stack must not take clients for something else.
        fits = rows.ndim == p.ndim + 1 and all(
            a in (1, b) for a, b in zip(rows.shape[1:], p.shape, strict=True)
        )
        wide = torch.promote_types(rows.dtype, p.dtype) != p.dtype
        if not fits or wide or _kind(rows)[1:] != _kind(p)[1:]:
            _refuse_rows(f"client_state[{name!r}]", rows, p)


def _kind(p: Tensor) -> tuple:
    return p.dtype, p.device, p.layout


def _refuse_rows(name: str, rows: Tensor, p: Tensor) -> NoReturn:
    what = f"not one row like {shown(p)} on {p.device} for each client"
    refuse(name, rows, what, "torch.stack of tensors like the parameter")


class _Cohort:
    """A cohort and its batches; ``train`` runs some of its clients together, by their places."""

    def __init__(
        self,
        plan: Plan,
        clients: ClientData,
        params: Params,
        ids: Int[np.ndarray, " m"],
        batches: Sequence[Int[np.ndarray, "_ _"]],
        *,
        lr: float,
        weights: Real[np.ndarray, " m"] | None = None,
        client_params: Params | None = None,
        client_state: Params | None = None,
        key: int | None = None,
    ) -> None:
        self.plan, self.clients, self.params = plan, clients, params
        self.ids, self.batches, self.lr = ids, batches, lr
        weights = clients.sizes[ids] if weights is None else weights
        self.weights = np.asarray(weights, dtype=np.float64)
        self.client_params, self.client_state = client_params or {}, client_state
        self.keys = None if key is None else Keys.of(key, ids)
        self.alone = takes_generator(plan.rule.update) or (
            plan.strategy.stack and not plan.rule.entrywise
        )
        self.loop = sgd_loop
        if plan.strategy.compile and self.keys is None and not self.alone:
            model, loss = plan.ready.model, plan.ready.loss
            # Types tell a class from one of the same name that was defined anew, in a notebook.
            made = str(model), *map(type, model.modules()), loss, plan.strategy.autocast
            self.loop = partial(compiled_loop, cache_key=made)

    def run(self, job: Callable[[np.ndarray], T], places: np.ndarray | None = None) -> list[T]:
        """Apply a function to the places of every job of this rank, side by side if so planned."""
        strategy, device = self.plan.strategy, self.clients.device
        if places is None:
            places = distributed.shard(np.array([rows.size for rows in self.batches]))

        jobs = self._cut(places)
        together = strategy.stack or strategy.merge  # kernels large enough to use the threads
        threads = strategy.threads or (1 if together else torch.get_num_threads())
        if len(jobs) <= 1 or threads == 1 or device.type != "cpu":
            return [job(places) for places in jobs]

        def in_a_thread(places: np.ndarray) -> T:
            with own_modes(device):
                return job(places)

        futures = [_pool(threads).submit(in_a_thread, places) for places in jobs]
        try:
            return [future.result() for future in futures]
        finally:  # after an error or Ctrl-C: nothing goes on in the background
            for future in futures:
                future.cancel()
            wait(futures)

    def train(self, places: np.ndarray) -> ClientParams:
        """Run the local steps of a job's clients, each with its own parameters."""
        stack = self.plan.strategy.stack
        starts = self.clients.starts[self.ids[places]]
        rows, within = stack_batches(starts, [self.batches[i] for i in places])
        rows = rows if stack else rows[:, 0]
        params = self.params
        if stack:
            params = {name: p.expand(len(places), *p.shape) for name, p in params.items()}
            if self.plan.strategy.compile:  # a step's results are contiguous: one graph for all
                params = {name: p.contiguous() for name, p in params.items()}
        if self.client_params:
            params = params | self._rows_of(self.client_params, places)
        state = self.client_state and self._rows_of(self.client_state, places)
        batches = gather(self.clients, rows, within)
        keys = self.keys and Keys([self.keys.clients[i] for i in places])
        moved, losses = self._update(params, state, batches, keys)
        if not stack:
            moved, losses = {name: p.unsqueeze(0) for name, p in moved.items()}, losses[None]
        return ClientParams(moved, losses, self.weights[places])

    def merge(self, places: np.ndarray) -> WeightedSum:
        """Take one step on the union of a job's batches, which is the average of its clients'."""
        starts, weights = self.clients.starts[self.ids[places]], self.weights[places]
        rows, within = merge_batches(starts, [self.batches[i] for i in places], weights)
        batches = gather(self.clients, rows[:, 0], within)
        moved, loss = self._update(self.params, None, batches)
        average = {name: p.unsqueeze(0) for name, p in moved.items()}
        return ClientParams(average, loss[None], weights.sum(keepdims=True)).sum()

    def _update(
        self,
        params: Params,
        state: Params | None,
        batches: Iterable[Batch],
        keys: Keys | None = None,
    ) -> LocalResult:
        plan, stack, rule = self.plan, self.plan.strategy.stack, self.plan.rule
        if keys is not None:
            batches = _drawn(batches, keys, plan.augment, stack)
        if self.alone:
            rule = per_client(rule, keys, stacked=stack)
        copy = plan.ready.replica()
        call, losses = (copy.stacked, stacked_losses) if stack else (copy, batch_loss)
        if plan.strategy.autocast is not None:
            call = partial(_autocast, call, plan.strategy.autocast)
        return local_update(
            partial(losses, call, plan.ready.loss),
            params,
            batches,
            lr=self.lr,
            rule=rule,
            trainable=plan.trainable,
            extra=[state[name] for name in plan.trainable] if state else None,
            loop=self.loop,
        )

    def _rows_of(self, rows: Params, places: np.ndarray) -> Params:
        index = torch.as_tensor(places, device=self.clients.device)
        picked = {name: values[index] for name, values in rows.items()}
        return picked if self.plan.strategy.stack else {n: p.squeeze(0) for n, p in picked.items()}

    def _cut(self, places: np.ndarray) -> list[np.ndarray]:
        """Cut places in the cohort into jobs."""
        if not len(places):
            return []
        strategy, device = self.plan.strategy, self.clients.device.type
        widths = np.array([self.batches[i].shape[1] for i in places])
        steps = np.array([len(self.batches[i]) for i in places])
        per_example, chunk = self.clients.inputs[0].nbytes, strategy.chunk
        if strategy.merge:
            examples = _EXAMPLES.get(device, min(_EXAMPLES_ON_GPU, ROOM_ON_GPU // per_example))
            chunk = chunk or max(1, examples // int(widths.max()))
        elif strategy.stack:
            held = sum(p.nbytes for p in self.params.values()) + per_example * int(widths.max())
            chunk = chunk or max(1, ROOM.get(device, ROOM_ON_GPU) // held)
        else:
            chunk = 1
        # Clients of about the same batch size together, so that little is padded; those of a job
        # take the same number of steps.
        order = np.argsort(widths, kind="stable")
        groups = [places[order[steps[order] == n]] for n in np.unique(steps)]
        return [job for own in groups for job in np.array_split(own, -(-len(own) // chunk))]


def _autocast(
    call: Callable[[Params, Tensor], Any], dtype: torch.dtype, params: Params, x: Tensor
) -> Any:
    """Call a model in a lower precision; return outputs in that of its parameters."""
    with torch.autocast(x.device.type, dtype):
        outputs = call(params, x)
    own = next((p.dtype for p in params.values() if p.is_floating_point()), None)
    return outputs if own is None else tree_map(lambda out: out.to(own), outputs)


def _drawn(
    batches: Iterable[Batch], keys: Keys, augment: Augment | None, stack: bool
) -> Iterator[tuple]:
    """Return batches with each client's generator for the loss, their inputs augmented."""
    for step, (x, y, shares) in enumerate(batches):
        if augment is not None:
            rows = x if stack else [x]
            made = [augment(*own) for own in zip(rows, keys.at(step, AUGMENT), strict=True)]
            for before, after in zip(rows, made, strict=True):
                fits = isinstance(after, Tensor) and after.shape == before.shape
                if not fits or _kind(after) != _kind(before):
                    raise ValueError(
                        f"Invalid augment: for {shown(before)} it returned {shown(after)}. Return "
                        "a tensor of the same shape, dtype and device."
                    )
            x = torch.stack(made) if stack else made[0]
        yield x, y, shares, keys.at(step, LOSS)


_EXAMPLES = {"cpu": 256}  # merged batches: examples in one forward pass
_EXAMPLES_ON_GPU = 2**14


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads with one thread each inside their kernels."""
    pool, before = ThreadPoolExecutor(threads, "fedlib"), torch.get_num_threads()
    meet = threading.Barrier(threads)

    def settle() -> None:
        torch.set_num_threads(1)
        meet.wait()

    wait([pool.submit(settle) for _ in range(threads)])
    # What a thread sets for itself is also what later threads start with, unless set back.
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # a forked child inherits no threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
