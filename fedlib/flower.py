"""A federation of real processes: fedlib's clients and server as the two halves of a Flower app.

``client_app`` runs where a client's data lie; ``fedavg`` is the ``Algorithm`` of the server, whose
rounds send messages instead of calling functions. The server draws cohorts and batches as
``fedlib.fedavg`` does and sends positions, never data: with the same seed, both end with the same
parameters up to rounding. The processes themselves are Flower's; ``fedlib.loopback`` starts them
on one machine.
"""

__all__ = [
    "Federation",
    "ServerApp",
    "Training",
    "client_app",
    "fedavg",
    "fine_tune",
    "load_params",
    "meet",
    "save_params",
]

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.clientapp.typing import Mod
    from flwr.serverapp import Grid, ServerApp
except ImportError as error:
    raise ImportError("Flower is not installed. Use: pip install 'fedlib[flower]'.") from error

from fedlib._checks import check_number, check_positive, check_positive_int, check_type, refuse
from fedlib._files import replace_file
from fedlib.aggregate import server_step, weighted_average
from fedlib.algorithm import Algorithm, State
from fedlib.batches import draw_batches
from fedlib.clients import ClientData
from fedlib.cohort import ClientParams, map_clients
from fedlib.evaluate import evaluate
from fedlib.fedavg import FedAvgConfig, draw_round
from fedlib.losses import Loss
from fedlib.models import Params
from fedlib.rules import LocalStep, sgd
from fedlib.server import ServerRule
from fedlib.storage import load_clients
from fedlib.validate import trainable_of

log = logging.getLogger("flwr")  # Flower sends its lines to whoever started the run

Training = Callable[
    [nn.Module, Params, ClientData, np.ndarray, float, "Params | None"],
    "tuple[ClientParams, Params | None]",
]
"""``(model, params, data, rows, lr, own) -> (moved, own)``: a client's part of a round. ``data`` is
a federation of one, ``rows`` its batches' positions, (local_steps, batch), ``moved`` what
``map_clients`` returns. ``own`` is what the client keeps to itself: tensors by name, None at first.
"""

POLL, GRACE = 0.2, 10.0
"""Seconds between two looks for answers; and those that a message outlives its deadline."""


# ---- Where the data are ----


def client_app(
    model: nn.Module,
    *,
    rule: LocalStep = sgd,
    loss: Loss | None = None,
    train: Training | None = None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return the app that a client runs: local steps, and fine-tuning, on its own data.

    A SuperNode's ``--node-config`` says which client it is and where its disk is: ``client``, a
    number, and ``folder``, which holds ``train``, a federation of one written by ``save_clients``,
    and perhaps ``test``. What the client keeps to itself is written there, too: ``own`` for each
    run, and ``personal``, its fine-tuned model.

    Args:
        model: the model, with the same code as the server's; its parameters come from there.
        rule: what a local step does.
        loss: ``(outputs, targets) -> one loss per example``; None for ``task_loss``.
        train: a client's part of a round, instead of ``rule``: an algorithm of your own.
        mods: Flower's, around every message: ``(message, context, call_next) -> answer``.

    Example:
        >>> from fedlib import LinearNet
        >>> app = client_app(LinearNet(2, 1))
    """
    check_type("model", model, nn.Module, "Use fl.CNN, fl.MLP, or a module of your own.")

    def one(model, params, data, rows, lr, own):
        one_client = np.array([0]), [rows]
        return map_clients(model, params, data, *one_client, lr=lr, rule=rule, loss=loss), own

    app, train = ClientApp(mods=list(mods)), train or one

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        examples = int(_data(context, "train").sizes[0])
        values = {"client": int(context.node_config["client"]), "examples": examples}
        return Message(RecordDict({"values": MetricRecord(values)}), reply_to=message)

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        asked, order = message.content, message.content["order"]
        (rows,) = asked["rows"].to_numpy_ndarrays()
        file = Path(context.node_config["folder"]) / f"own-{order['name']}.safetensors"
        own = _recall(file, order["round"])
        moved, new = train(
            model,
            asked["params"].to_torch_state_dict(),
            _data(context, "train"),
            rows,
            order["lr"],
            own,
        )
        if new is not None:
            _remember(file, order["round"], own, new)
        content = RecordDict(
            {
                "params": ArrayRecord({n: p[0] for n, p in moved.params.items()}),
                "values": MetricRecord({"loss": float(moved.losses[0])}),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def personalise(message: Message, context: Context) -> Message:
        params, order = message.content["params"].to_torch_state_dict(), message.content["order"]
        data, client = _data(context, "train"), int(context.node_config["client"])
        steps, size = order["steps"], int(data.sizes[0])
        # As fedlib.fine_tune draws for the client of this number.
        rows = draw_batches(
            size,
            local_steps=steps,
            batch_size=min(order["batch_size"], size),
            rng=np.random.default_rng([order["seed"], client]),
        )
        part = order["part"]
        names = [n for n in trainable_of(model) if part == "all" or n.startswith(f"{part}.")]
        moved = map_clients(
            model, params, data, np.array([0]), [rows], lr=order["lr"], loss=loss, trainable=names
        )
        personal = params | {n: p[0].clone() for n, p in moved.params.items()}
        folder = Path(context.node_config["folder"])
        save_params(personal, folder / "personal.safetensors")  # it stays here
        held = _data(context, "test" if (folder / "test").exists() else "train")
        values = {
            "before": float(evaluate(model, params, held)[0]),
            "after": float(evaluate(model, personal, held)[0]),
        }
        return Message(RecordDict({"values": MetricRecord(values)}), reply_to=message)

    return app


def _data(context: Context, name: str) -> ClientData:
    return load_clients(Path(context.node_config["folder"]) / name)


def _recall(file: Path, round_num: int) -> Params | None:
    """Return what a client kept before this round, also if it has played the round already."""
    if not file.exists():
        return None
    kept = load_file(file)
    side = "before/" if int(kept.pop("round")) == round_num + 1 else "after/"
    return {n.removeprefix(side): p for n, p in kept.items() if n.startswith(side)} or None


def _remember(file: Path, round_num: int, before: Params | None, after: Params) -> None:
    sides = {f"before/{n}": p for n, p in (before or {}).items()}
    sides |= {f"after/{n}": p.contiguous() for n, p in after.items()}
    replace_file(file, save(sides | {"round": torch.tensor(round_num + 1)}))


def save_params(params: Params, file: str | Path) -> None:
    """Write parameters to a file, as safetensors."""
    replace_file(Path(file), save({n: p.contiguous() for n, p in params.items()}))


def load_params(file: str | Path) -> Params:
    """Read what ``save_params`` wrote."""
    return load_file(file)


# ---- Where the average is taken ----


class Federation(NamedTuple):
    """What the server knows of its clients: where they are, and how many examples each has.

    Attributes:
        grid: Flower's way to send messages.
        nodes: each client's node, by the client's number.
        sizes: examples per client, shape (M,).
    """

    grid: Grid
    nodes: list[int]
    sizes: np.ndarray

    def ask(
        self, kind: str, contents: Mapping[int, RecordDict], *, deadline: float, group: str
    ) -> dict[int, Message]:
        """Send to some clients, and return the answers that came before the deadline.

        Args:
            kind: Flower's type of message: "query", "train" or "evaluate".
            contents: what each client is sent, by its number.
            deadline: seconds that clients have. Nobody waits for one that is not connected.
            group: shown in the nodes' logs; the round.
        """
        there = set(self.grid.get_node_ids())
        sent = [i for i in contents if self.nodes[i] in there]
        for i in contents.keys() - set(sent):
            log.warning("%s: client %d is not connected", group, i)
        ttl = deadline + GRACE
        messages = [
            Message(contents[i], self.nodes[i], kind, ttl=ttl, group_id=group) for i in sent
        ]
        ids = list(self.grid.push_messages(messages))
        if len(ids) < len(sent):
            raise RuntimeError(f"{group}: the SuperLink took none of the messages; see its log.")
        waiting, answers = dict(zip(ids, sent, strict=True)), {}
        until = time.monotonic() + deadline
        while waiting and time.monotonic() < until:
            for answer in self.grid.pull_messages([each for each in waiting if each]):
                answers[waiting.pop(answer.metadata.reply_to_message_id)] = answer
            time.sleep(POLL if waiting else 0)
        for i in waiting.values():
            log.warning("%s: client %d did not answer within %g s", group, i, deadline)
        return answers


def meet(grid: Grid, *, num_clients: int, deadline: float = 60.0) -> Federation:
    """Wait until all clients are connected and have said who they are and how much they hold.

    Args:
        grid: Flower's, as given to a ServerApp's ``main``.
        num_clients: how many clients M the federation has.
        deadline: seconds until it is an error.

    Raises:
        ValueError: if two nodes say that they are the same client, or one is none of the M.
        TimeoutError: if fewer clients answer in time.
    """
    num_clients = check_positive_int("num_clients", num_clients)
    until, found = time.monotonic() + check_positive("deadline", deadline), {}
    while len(found) < num_clients and time.monotonic() < until:
        nodes = [n for n in grid.get_node_ids() if n not in {node for node, _ in found.values()}]
        here = Federation(grid, nodes, np.ones(len(nodes), dtype=np.int64))
        left = max(POLL, until - time.monotonic())
        asked = {place: RecordDict() for place in range(len(nodes))}
        answers = here.ask("query", asked, deadline=left, group="meet") if nodes else {}
        for place, answer in answers.items():
            if answer.has_error():
                log.warning("meet: a client failed (%s)", answer.error.reason)
                continue
            client, size = (int(answer.content["values"][n]) for n in ("client", "examples"))
            if not 0 <= client < num_clients or size < 1 or client in found:
                twice = "said by two nodes" if client in found else f"with {size} examples"
                refuse("client", client, twice, f"each of 0..{num_clients - 1} once, with data")
            found[client] = nodes[place], size
        time.sleep(POLL)
    if len(found) < num_clients:
        raise TimeoutError(
            f"Only clients {sorted(found)} of {num_clients} answered within {deadline:g} s. Start "
            "the others' SuperNodes, or give a smaller num_clients."
        )
    pairs = [found[client] for client in range(num_clients)]
    return Federation(grid, [n for n, _ in pairs], np.array([size for _, size in pairs]))


def fedavg(
    model: nn.Module,
    federation: Federation,
    config: FedAvgConfig,
    *,
    server_rule: ServerRule | None = None,
    deadline: float = 600.0,
    quorum: float = 0.5,
    longest: float = 10.0,
    name: str = "run",
) -> Algorithm:
    """Return ``fedlib.fedavg`` over Flower, for ``fedlib.run``, which keeps its checkpoint.

    An answer counts if it came in time and holds finite tensors of the server's names, shapes and
    types, and if its update is not much longer than the others'. The average is taken over those
    that count; what was left out, and why, is logged. If fewer than ``quorum`` count, the round is
    no round: the run ends with an error, and goes on from its checkpoint when started again.

    Args:
        model: as for ``fedlib.fedavg``; the clients' app has the same.
        federation: what ``meet`` returned, in the place of data.
        config: the run's configuration.
        server_rule: ``fedadam()``, say, instead of ``server_step``.
        deadline: seconds that clients have for a round.
        quorum: share of the cohort that must count, in (0, 1].
        longest: how many times as long as the lower median of the round's an update may be.
        name: of the run, by which clients know what they kept of it.

    Returns:
        The algorithm. Beside the loss it records ``answers``, how many counted.
    """
    check_type("federation", federation, Federation, "Use meet(grid, num_clients=...).")
    check_type("config", config, FedAvgConfig, "Use FedAvgConfig(num_rounds=..., ...).")
    quorum = check_number("quorum", quorum, above=0, most=1)
    deadline, longest = check_positive("deadline", deadline), check_positive("longest", longest)
    trainable, sizes = trainable_of(model), federation.sizes
    rule = server_rule or ServerRule(
        "average",
        lambda params: {},
        lambda params, average, state: (
            server_step(params, average, server_lr=config.server_lr),
            {},
        ),
    )
    # Cohorts and batches are drawn from sizes alone.
    held = ClientData._as_checked(torch.empty(0), torch.empty(0), sizes)

    def init(params: Params) -> State:
        moving = {n: params[n] for n in trainable}
        return {"params": params, "server": rule.init(moving), "round": torch.tensor(0)}

    def play(state: State, rng: np.random.Generator) -> tuple[State, dict[str, float]]:
        params, t = state["params"], int(state["round"])
        cohort, batches = draw_round(held, config, rng=rng)
        shared = ArrayRecord(params)
        order = ConfigRecord({"round": t, "lr": config.client_lr, "name": name})
        contents = {
            int(i): RecordDict(
                {
                    "params": shared,
                    "rows": ArrayRecord([np.ascontiguousarray(rows)]),
                    "order": order,
                }
            )
            for i, rows in zip(cohort, batches, strict=True)
        }
        group = f"round {t + 1}"
        answers = federation.ask("train", contents, deadline=deadline, group=group)
        before = {n: params[n] for n in trainable}
        counted = _sift(answers, before, longest=longest, group=group)
        if len(counted) < quorum * len(cohort):
            raise RuntimeError(
                f"Round {t + 1}: {len(counted)} of {len(cohort)} clients count, fewer than the "
                f"quorum of {quorum:g}. See the lines before; started again, the run goes on "
                "from its checkpoint."
            )
        ids = sorted(counted)
        moved, losses = zip(*(counted[i] for i in ids), strict=True)
        average = weighted_average(moved, sizes[ids])
        after, kept = rule.update(before, average, state["server"])
        new = {"params": params | after, "server": kept or {}, "round": state["round"] + 1}
        loss = float(np.average(losses, weights=sizes[ids]))
        return new, {"loss": loss, "answers": float(len(ids))}

    identity = asdict(config) | {"algorithm": "flower.fedavg", "name": name, "server": rule.name}
    del identity["num_rounds"]
    return Algorithm(init, play, lambda s: s["params"], identity | {"sizes": sizes.tolist()})


def _sift(
    answers: Mapping[int, Message], before: Params, *, longest: float, group: str
) -> dict[int, tuple[Params, float]]:
    """Return parameters and loss of the clients whose answers count; log the others."""
    counted, lengths, reasons = {}, {}, {}
    for i, answer in answers.items():
        try:
            counted[i] = params, _ = _read(answer, before)
        except Exception as error:  # whatever a client may send
            reasons[i] = str(error) or type(error).__name__
        else:
            squares = (float((p - before[n]).double().square().sum()) for n, p in params.items())
            lengths[i] = sum(squares) ** 0.5
    usual = sorted(lengths.values())[(len(lengths) - 1) // 2] if lengths else 0.0
    for i, length in lengths.items():
        if not length <= longest * usual:  # also infinite in float64
            del counted[i]
            reasons[i] = f"its update is {length / usual:.3g} times as long as the median"
    for i, reason in sorted(reasons.items()):
        log.warning("%s: client %d left out: %s", group, i, reason)
    return counted


def _read(answer: Message, before: Params) -> tuple[Params, float]:
    """Return an answer's parameters and loss; raise with the reason if it does not count."""
    if answer.has_error():
        raise ValueError(f"it failed ({answer.error.reason})")
    params = answer.content["params"].to_torch_state_dict()
    loss = float(answer.content["values"]["loss"])
    if params.keys() != before.keys():
        raise ValueError(f"its parameters are named {sorted(params)}")
    for n, p in params.items():
        if (p.shape, p.dtype) != (before[n].shape, before[n].dtype):
            raise ValueError(
                f"its {n} is {p.dtype} of shape {tuple(p.shape)}, not {before[n].dtype} of "
                f"{tuple(before[n].shape)}"
            )
        if not p.isfinite().all():
            raise ValueError(f"its {n} is not finite")
    if not np.isfinite(loss):
        raise ValueError("its loss is not finite")
    return dict(params), loss


def fine_tune(
    federation: Federation,
    params: Params,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    part: str = "all",
    seed: int,
    deadline: float = 600.0,
) -> dict[int, tuple[float, float]]:
    """Let every client fine-tune for itself, and return its accuracies before and after.

    Personal parameters stay with the clients. They are those of ``fedlib.fine_tune`` with the same
    arguments.
    """
    order = dict(steps=steps, lr=lr, batch_size=batch_size, part=part, seed=seed)
    content = {"params": ArrayRecord(params), "order": ConfigRecord(order)}
    everyone = {i: RecordDict(content) for i in range(len(federation.nodes))}
    answers = federation.ask("evaluate", everyone, deadline=deadline, group="fine-tuning")
    found = {}
    for i, answer in sorted(answers.items()):
        if answer.has_error():
            log.warning("fine-tuning: client %d failed (%s)", i, answer.error.reason)
        else:
            values = answer.content["values"]
            found[i] = float(values["before"]), float(values["after"])
    return found
