"""An algorithm, as pure functions of its state, and the loop that runs any of them."""

__all__ = ["Algorithm", "History", "Metrics", "RunResult", "State", "run"]

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fedlib import distributed
from fedlib._checks import (
    check_bool,
    check_callable,
    check_int,
    check_path,
    check_positive_int,
    check_type,
    refuse,
    shown,
)
from fedlib.checkpoint import Checkpoint, RunState, leaves_of, run_identity
from fedlib.models import Params, params_of
from fedlib.validate import check_params, own_modes

if TYPE_CHECKING:
    import pandas

State = dict[str, Any]
"""What an algorithm keeps from round to round: tensors by name, in dicts, and dicts inside them."""

Metrics = Callable[[Params], Mapping[str, "float | np.ndarray"]]
"""From the server's parameters to numbers by name, or arrays with one number per client."""


class Algorithm(NamedTuple):
    """A federated algorithm: state in, state out.

    Attributes:
        init: ``params -> state``, the state before the first round, from the model's parameters.
        round: ``(state, rng) -> (state, metrics)``, one round. ``rng`` is keyed by (seed, round)
            and draws all that is random; the new state holds new tensors, in dicts of the same
            names. The metrics are, by name, numbers or arrays with one per client: ``loss`` is the
            history's, ``diverged`` may list ids of clients to name in the error, and others are
            recorded with those of ``run``'s ``metrics``.
        params: ``state -> params``, the server's parameters.
        identity: what tells a run of it from others, a dict of JSON values by name, which a
            checkpoint and all ranks must agree on. Name all that changes the result, but the seed
            and the model's start, which ``run`` adds. A value may be a function without arguments,
            such as ``lambda: clients.digest``: it is called only where there is a checkpoint, or
            another rank.

    Example:
        >>> halve = Algorithm(
        ...     init=lambda params: params,
        ...     round=lambda state, rng: ({n: p / 2 for n, p in state.items()}, {"loss": 0.0}),
        ...     params=lambda state: state,
        ...     identity={"algorithm": "halve"},
        ... )
        >>> model = nn.Linear(1, 1).requires_grad_(False)
        >>> _ = model.weight.fill_(8.0)
        >>> run(halve, model, num_rounds=3, seed=0, progress=False).params["weight"]
        tensor([[1.]])
    """

    init: Callable[[Params], State]
    round: Callable[[State, np.random.Generator], tuple[State, Mapping[str, Any]]]
    params: Callable[[State], Params]
    identity: dict


@dataclass(frozen=True)
class History:
    """What was recorded on the way; arrays of equal length, one entry per evaluated round.

    ``history["name"]`` is the series of the metric of that name.

    Attributes:
        round_num: rounds completed when the entry was made, int64.
        loss: mean loss of the cohort's local steps in that round, float64.
        metrics: the series returned by ``metrics``, float64 each: shape (entries,), or
            (entries, M) of a metric with one number per client.
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
                for name in (entries[0]["metrics"] if entries else ())
            },
        )

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with one row per entry, and columns ``name[i]`` for client i's metric.

        Raises:
            ImportError: if pandas is not installed; ``to_csv`` needs none.
        """
        import pandas  # not among what fedlib installs

        return pandas.DataFrame(self._columns()).set_index("round_num")

    def to_csv(self, path: str | Path) -> None:
        """Write the table of ``to_pandas`` as CSV, numbers in full.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp()) / "history.csv"
            >>> History(np.array([1, 2]), np.array([0.5, 0.25])).to_csv(file)
            >>> print(file.read_text(), end="")
            round_num,loss
            1,0.5
            2,0.25
        """
        columns = self._columns()
        with check_path("path", path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {"round_num": self.round_num, "loss": self.loss}
        for name, series in self.metrics.items():
            if series.ndim == 1:
                columns[name] = series
            else:
                columns |= {f"{name}[{i}]": series[:, i] for i in range(series.shape[1])}
        return columns


class RunResult(NamedTuple):
    """What ``run`` returns.

    Attributes:
        params: the server's parameters after the last round.
        history: loss and metrics of the evaluated rounds.
        state: the algorithm's whole state after the last round.
    """

    params: Params
    history: History
    state: State


def run(
    algorithm: Algorithm,
    model: nn.Module,
    *,
    num_rounds: int,
    seed: int,
    metrics: Metrics | None = None,
    eval_every: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    stop: Callable[[History], bool] | None = None,
) -> RunResult:
    """Run the rounds of an algorithm from the model's current parameters.

    Round t is given a generator keyed by (seed, t) alone. So the same seed gives the same result,
    and a resumed run the result of one that was never stopped.

    Args:
        algorithm: what a round does.
        model: gives the parameters before the first round; it is not changed.
        num_rounds: rounds T, at least 1.
        seed: keys all randomness of the run, at least 0.
        metrics: maps the server's parameters, which it must not change, to numbers by name, or to
            arrays with one number per client; called in the evaluated rounds, on rank 0.
        eval_every: evaluate after every so many rounds, and after the last. (A run that is carried
            further keeps the entry of its earlier end.)
        checkpoint: a file that holds the run; see ``run_fedavg``.
        progress: show a progress bar.
        stop: ``history -> bool``, asked after every evaluated round; True ends the run there.

    Returns:
        The server's parameters, the history, and the algorithm's state.

    Raises:
        TypeError: if an argument is of another type, or ``metrics`` returns anything but numbers.
        ValueError: before the first round, if an argument is out of range, the checkpoint is of
            another run or further than ``num_rounds``, or ranks were given different runs.
        OSError: if the checkpoint cannot be written; what was written before is intact.
        FloatingPointError: if the loss or the state stop being finite.
        RuntimeError: if another rank stopped.
    """
    check_type("algorithm", algorithm, Algorithm, "Use fedavg(model, clients, config), say.")
    for name in ("init", "round", "params"):
        function = getattr(algorithm, name)
        check_callable(f"algorithm.{name}", function, "Write it as Algorithm says.")
    check_type("algorithm.identity", algorithm.identity, dict, "Use a dict of JSON values by name.")
    return run_checked(
        algorithm,
        model,
        num_rounds=num_rounds,
        seed=seed,
        metrics=metrics,
        eval_every=eval_every,
        checkpoint=checkpoint,
        progress=progress,
        stop=stop,
    )


def run_checked(
    algorithm: Algorithm,
    model: nn.Module,
    *,
    num_rounds: int,
    seed: int,
    metrics: Metrics | None,
    eval_every: int,
    checkpoint: str | Path | None,
    progress: bool,
    stop: Callable[[History], bool] | None,
    num_clients: int | None = None,
    device: torch.device | None = None,
) -> RunResult:
    """Run an algorithm; ``num_clients`` is how many numbers a metric of each client has."""
    num_rounds = check_positive_int("num_rounds", num_rounds)
    eval_every = check_positive_int("eval_every", eval_every)
    seed = check_int("seed", seed, minimum=0)
    progress = check_bool("progress", progress)
    if metrics is not None:
        remedy = "Use a function from the server's parameters to a dict of numbers by name."
        check_callable("metrics", metrics, remedy)
    if stop is not None:
        check_callable("stop", stop, "Use a function from the history to True or False.")
    params = params_of(model)
    check_params(model, params)
    device = device or next((p.device for p in params.values()), torch.device("cpu"))
    with own_modes(device):
        state = RunState(0, algorithm.init(params), [])
    leaves_of(state.params)  # refuses what no checkpoint could hold
    rank, num_ranks = distributed.rank()
    if checkpoint is not None or num_ranks > 1:
        identity = run_identity(algorithm.identity, seed, model)
        shared = {n: v for n, v in identity.items() if n != "probe"}  # processors round otherwise
        distributed.check_same(shared | dict(num_rounds=num_rounds, eval_every=eval_every))
    file = None
    if checkpoint is not None and rank == 0:
        file = Checkpoint(checkpoint, identity)
        state = file.load(device=device, like=state.params) or state
        first, ends = state.round_num, [entry["round_num"] for entry in state.entries]
        least = first if first in ends else first + 1
        if num_rounds < least:
            raise ValueError(
                f"Invalid num_rounds={num_rounds}: checkpoint {file.path} is at round "
                f"{first}. Use num_rounds >= {least}, or another path."
            )
        if first < num_rounds:  # shows before the first round that it can be written
            file.save(state)
    shared_state: Any = distributed.broadcast(tuple(state), device=device)
    state = RunState(*shared_state)

    def ends_here(state: RunState) -> bool:
        """Ask ``stop``, on rank 0, whether what was recorded last is the end."""
        if stop is None or not state.entries or state.entries[-1]["round_num"] != state.round_num:
            return False
        return distributed.broadcast(rank == 0 and _truth(stop(History.of(state.entries))))

    try:
        rounds = range(state.round_num, num_rounds)
        for t in tqdm(rounds, desc="rounds", disable=not progress or rank > 0):
            if ends_here(state):
                break
            with own_modes(device):
                found = algorithm.round(state.params, np.random.default_rng([seed, t]))
            played, values, loss, ill = _played(found)
            entries = state.entries
            if not (
                np.isfinite(loss) and all(p.isfinite().all() for p in leaves_of(played).values())
            ):
                rate = algorithm.identity.get("client_lr")
                than = "step size" if rate is None else f"client_lr smaller than {rate}"
                use = f"Use a {'smaller ' * (rate is None)}{than}."
                if np.isfinite(loss) and not ill and algorithm.identity.get("server_rule"):
                    use = "The clients' are: use a smaller step in server_rule."
                leaves = leaves_of(played).items()
                broken = next((name for name, p in leaves if not p.isfinite().all()), None)
                what = f"the mean local loss is {loss}"
                if np.isfinite(loss):
                    what = f"{broken} is not finite"
                raise FloatingPointError(f"Training diverged in round {t + 1}{ill}: {what}. {use}")
            if (t + 1) % eval_every == 0 or t + 1 == num_rounds:
                measured = {}
                if rank == 0:
                    server = algorithm.params(played)
                    measured = _measure(metrics, server, values, entries, num_clients)
                measured = distributed.broadcast(measured)
                entries = [*entries, {"round_num": t + 1, "loss": loss, "metrics": measured}]
            state = RunState(t + 1, played, entries)  # at once: an interrupt finds a whole state
            if file is not None:
                file.save_if_due(state)
    finally:
        if file is not None and file.saved < state.round_num:
            file.save(state)
    return RunResult(algorithm.params(state.params), History.of(state.entries), state.params)


def _truth(answer: object) -> bool:
    try:
        return bool(answer)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"Invalid stop: it returned {shown(answer)}. Return True or False."
        ) from error


def _played(found: Any) -> tuple[State, dict[str, Any], float, str]:
    """Return what a round made: the state, what it recorded, the loss, and who diverged."""
    try:
        state, values = found
        values = dict(values)
        ill = [int(i) for i in values.pop("diverged", ())]
        more = f" and {len(ill) - 1} more" if len(ill) > 1 else ""
        on = f" on client {ill[0]}{more}" if ill else ""
        return state, values, float(values.pop("loss", 0.0)), on
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"Invalid algorithm: its round returned {shown(found)}. Return the new state and a "
            'dict of numbers by name, such as {"loss": 0.5}.'
        ) from error


def _measure(
    metrics: Metrics | None,
    params: Params,
    found: dict[str, Any],
    entries: list[dict],
    num_clients: int | None,
) -> dict[str, float | list[float]]:
    """Return what a round found and what ``metrics`` measure, checked against earlier entries."""
    measured = {} if metrics is None else metrics(params)
    try:
        pairs = [*found.items(), *measured.items()]
        numbers = {_text(name): _numbers(value, num_clients) for name, value in pairs}
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"Invalid metrics: they returned {measured!r}. Return a dict of numbers by name, or of "
            "arrays with one number per client."
        ) from error
    if len(numbers) < len(pairs):
        raise ValueError(
            f"Invalid metrics: {sorted(measured)}, but the algorithm records {sorted(found)} "
            "itself. Use other names."
        )
    before = entries[-1]["metrics"] if entries else numbers
    if {n: np.shape(v) for n, v in before.items()} != {n: np.shape(v) for n, v in numbers.items()}:
        raise ValueError(
            f"Invalid metrics: {sorted(numbers)} now, {sorted(before)} before. Return the same "
            "names, and as many numbers, in every round, and after resuming."
        )
    return numbers


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def _numbers(value: Any, num_clients: int | None) -> float | list[float]:
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 1:
        row = [float(number) for number in value]
        if len(row) > 1 and len(row) == (num_clients or len(row)):
            return row
    return float(value)
