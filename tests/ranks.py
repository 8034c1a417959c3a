"""What the ranks of test_distributed.py run: each in a process of its own, or under torchrun."""

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import long_run
import numpy as np
import torch
from test_fedavg import CONFIG, federation
from torch import nn
from tqdm.auto import tqdm

import fedlib as fl
from fedlib.strategy import Strategy

RAGGED = (5, 9, 3, 12, 1, 7)
ONE_STEP = replace(CONFIG, local_steps=1, cohort_size=5)


def real():
    rng = np.random.default_rng(3)
    inputs, targets = torch.as_tensor(rng.standard_normal((8, 5))), torch.as_tensor(rng.random(8))
    return fl.ClientData(inputs, targets, np.array([3, 5]))


def frozen():
    model = fl.MLP((1, 4, 4), 3).double()
    model.body.requires_grad_(False)
    return model


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")


def drawn(like, generator):
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def dropped(outputs, targets, generator):
    return smoothed(outputs * (drawn(outputs, generator) > 0), targets)


def shifted(inputs, generator):
    return inputs + 0.1 * drawn(inputs, generator)


def noisy():
    def update(params, grads, state, lr, generator):
        grads = [g + 0.1 * drawn(g, generator) for g in grads]
        return fl.sgd.update(params, grads, state, lr)

    return fl.sgd._replace(name="noisy", update=update)


CASES = {
    "loop": dict(strategy="loop"),
    "threads": dict(strategy=Strategy(threads=2), model=fl.CNN((1, 4, 4), 3).double()),
    "stacked": dict(strategy="stacked"),
    "chunks": dict(strategy=Strategy(stack=True, chunk=2), config=replace(CONFIG, cohort_size=6)),
    "merged": dict(config=ONE_STEP, strategy="merged"),
    "merged, chunks": dict(config=ONE_STEP, strategy=Strategy(merge=True, chunk=2)),
    "full batches": dict(config=replace(CONFIG, cohort_size=None, batch_size=None)),
    "momentum": dict(step=fl.momentum(0.9)),
    "one client": dict(config=replace(CONFIG, cohort_size=1)),
    "one client, one step": dict(config=replace(ONE_STEP, cohort_size=1)),
    "real targets": dict(
        clients=real(), model=fl.LinearNet(5, 2).double(), config=replace(CONFIG, cohort_size=2)
    ),
    "frozen body": dict(model=frozen()),
    "FedRep": dict(algorithm=fl.run_fedrep, head_steps=2),
    "FedRep, one client": dict(
        algorithm=fl.run_fedrep, head_steps=2, config=replace(CONFIG, cohort_size=1)
    ),
    "SCAFFOLD": dict(algorithm=fl.run_scaffold),
    "SCAFFOLD, one client": dict(algorithm=fl.run_scaffold, config=replace(CONFIG, cohort_size=1)),
    "own loss": dict(loss=smoothed),
    "own loss, one step": dict(loss=smoothed, config=ONE_STEP),
    "server rule": dict(server_rule=fl.fedadam(), config=replace(CONFIG, server_lr=1.0)),
    "epochs": dict(config=replace(CONFIG, local_steps=None, local_epochs=2, cohort_size=6)),
    "weights, schedule": dict(weights=np.arange(1.0, 7.0), lr_schedule=lambda t: 1 / (1 + t)),
    "own cohort": dict(cohort=lambda rng, t: rng.choice(6, 4)),
    "noise in the rule": dict(step=noisy()),
    "noise in the loss": dict(loss=dropped),
    "augmentation": dict(augment=shifted),
    "clipped": dict(step=fl.clip_by_global_norm(0.3)),
    "stopped": dict(stop=lambda history: len(history) == 2),
    "float32": dict(clients=federation(RAGGED, dtype=torch.float32), model=fl.MLP((1, 4, 4), 3)),
}

DIFFERENT = {
    "seed=0 on rank 0, 1 on rank 1": lambda rank: dict(seed=rank),
    "client_lr=0.1 on rank 0, 1.1 on rank 1": lambda rank: dict(
        config=replace(CONFIG, client_lr=0.1 + rank)
    ),
    "num_rounds=4 on rank 0, 5 on rank 1": lambda rank: dict(
        config=replace(CONFIG, num_rounds=4 + rank)
    ),
    "eval_every=1 on rank 0, 2 on rank 1": lambda rank: dict(eval_every=1 + rank),
    r"step=sgd on rank 0, momentum\(0.9\) on rank 1": lambda rank: dict(
        step=fl.momentum() if rank else fl.sgd
    ),
    "data=.* on rank 0, .* on rank 1": lambda rank: dict(clients=federation(seed=rank)),
    "start=.* on rank 0, .* on rank 1": lambda rank: dict(
        model=fl.MLP((1, 4, 4), 3, seed=rank).double()
    ),
}


def start(algorithm=fl.run_fedavg, **change):
    run = dict(
        model=fl.MLP((1, 4, 4), 3).double(),
        clients=federation(RAGGED),
        config=CONFIG,
        seed=0,
        progress=False,
    )
    return algorithm(**(run | change))


def plain(result):
    """What can be saved: parameters, rounds, losses, metrics."""
    history = result.history
    metrics = {name: series.tolist() for name, series in history.metrics.items()}
    return result.params, history.round_num.tolist(), history.loss.tolist(), metrics


def all_cases(rank):
    own = dict(metrics=lambda params: {"process": os.getpid()})  # no two ranks measure the same
    return {name: plain(start(**own | change)) for name, change in CASES.items()}


def all_refusals(rank):
    messages = []
    for change in DIFFERENT.values():
        try:
            start(**change(rank.rank))
        except ValueError as error:
            messages.append(str(error))
    return messages


def sums(rank):
    """Sums of two dtypes, in turn."""
    numbers = [
        torch.full((2, 3), 10.0**rank.rank, dtype=torch.float64),
        torch.tensor(1.5 * rank.rank),
        torch.full((4, 1), 2.0**rank.rank, dtype=torch.float64),
    ]
    return fl.distributed.all_reduce(numbers)


def work(rank):
    return sums(rank), all_cases(rank), all_refusals(rank)


def stop_in_round_3(rank, path, how):
    """Rank 0's metrics stop; or rank 1 is killed, at work on its client."""
    calls, measured = [], []
    config = replace(CONFIG, cohort_size=2, client_lr=0.05)

    def metrics(params):
        measured.append(1)
        if how == "error" and len(measured) == 3:
            raise ZeroDivisionError
        return {"norm": params["head.weight"].norm()}

    def update(params, grads, state, lr):
        calls.extend([1] * (lr == config.client_lr))  # not those of the trials before the run
        if how == "kill" and rank.rank == 1 and len(calls) > 2 * CONFIG.local_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return fl.sgd.update(params, grads, state, lr)

    if rank.rank:  # its own path is not used
        path = Path(path).parent / "nowhere" / "run"
    step = fl.sgd._replace(update=update)
    return plain(start(step=step, metrics=metrics, checkpoint=path, config=config))


def long(rank, rounds):
    return plain(long_run.run(rounds=rounds))


def in_a_process(function, index, count, port, folder, *args):
    """Run a function of the rank, and leave what it returns, or its error, in the folder."""
    os.environ |= {
        "RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(index),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    try:
        with fl.distributed.join(device="cpu", threads=1, timeout=60) as rank:
            found = function(rank, *args)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{index}.pt")


def main():
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    tqdm.set_lock(threading.RLock())
    with fl.distributed.join(device="cpu", threads=1, timeout=60) as rank:
        restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
        temporary = folder / f"{rank.rank}.new"
        temporary.write_text(str(os.getpid()))
        temporary.rename(folder / f"{restart}.{rank.rank}")
        result = long_run.run(folder / "run", rounds)
    torch.save(plain(result), folder / f"{rank.rank}.pt")


if __name__ == "__main__":
    main()
