"""The app of ``studies.federation`` and of the tests: three algorithms, and faults on demand."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message

import fedlib as fl

model = fl.MLP((1, 8, 8), 10, hidden=(16,)).double()
LR, STEPS, BATCH = 0.1, 5, 10


def config(rounds: int) -> fl.FedAvgConfig:
    return fl.FedAvgConfig(
        num_rounds=rounds, local_steps=STEPS, cohort_size=None, batch_size=BATCH, client_lr=LR
    )


# Ditto: beside FedAvg, a model of the client's own, pulled to the server's (Li et al., 2021).
PULL = fl.LocalStep(
    "ditto(0.5)",
    lambda params, centre: centre,
    lambda params, grads, centre, lr: (
        [p - lr * (g + 0.5 * (p - c)) for p, g, c in zip(params, grads, centre, strict=True)],
        centre,
    ),
)


def ditto(model, params, data, rows, lr, own):
    """A client's part of a round of Ditto."""
    here = model, params, data, np.array([0]), [rows]
    moved = fl.map_clients(*here, lr=lr)
    start, centre = ({n: p[None] for n, p in each.items()} for each in (own or params, params))
    mine = fl.map_clients(*here, lr=lr, rule=PULL, client_params=start, client_state=centre)
    return moved, {n: p[0] for n, p in mine.params.items()}


def misbehave(message: Message, context: Context, call_next) -> Message:
    """Do what ``faults`` says of this client and round; a Flower mod."""
    if message.metadata.message_type != "train":
        return call_next(message, context)
    here = f"{context.node_config['client']}:"
    now = f"@{message.content['order']['round']}"
    words = str(context.run_config["faults"]).split()
    ours = [word for word in words if word.startswith(here) and word.endswith(now)]
    fault = ours[0][len(here) : -len(now)] if ours else ""
    if fault in ("slow", "wait", "mark"):
        Path(context.node_config["folder"], fault).touch()
        time.sleep(0 if fault == "mark" else 600)  # late, or until somebody kills this machine
    elif fault == "raise":
        raise RuntimeError("out of memory")
    elif fault == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = call_next(message, context)
    if fault:
        arrays = {n: a.numpy() for n, a in answer.content["params"].items()}
        name = next(iter(arrays))
        if fault == "nan":
            arrays[name] = np.full_like(arrays[name], np.nan)
        elif fault == "huge":
            arrays[name] = arrays[name] * 1e6
        elif fault == "shape":
            arrays[name] = arrays[name][:1]
        elif fault == "float32":
            arrays[name] = arrays[name].astype(np.float32)
        answer.content["params"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
    return answer


client = fl.flower.client_app(model, mods=[misbehave])
ditto_client = fl.flower.client_app(model, train=ditto, mods=[misbehave])
server = fl.flower.ServerApp()


@server.main()
def main(grid, context):
    asked = context.run_config
    federation = fl.flower.meet(grid, num_clients=asked["clients"])
    rule = fl.fedadam() if asked["algorithm"] == "fedadam" else None
    algorithm = fl.flower.fedavg(
        model,
        federation,
        config(asked["rounds"]),
        server_rule=rule,
        deadline=asked["deadline"],
        quorum=0.3,
        name=asked["algorithm"],
    )
    result = fl.run(
        algorithm,
        model,
        num_rounds=asked["rounds"],
        seed=asked["seed"],
        checkpoint=asked["checkpoint"] or None,
        progress=False,
    )
    fl.flower.save_params(result.params, asked["out"])
    if asked["fine-tuning"]:
        how = dict(steps=asked["fine-tuning"], lr=LR, batch_size=BATCH, part="head")
        found = fl.flower.fine_tune(federation, result.params, seed=asked["seed"], **how)
        Path(f"{asked['out']}.json").write_text(json.dumps(found))
