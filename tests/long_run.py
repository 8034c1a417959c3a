"""A run that is made to be killed: test_checkpoint.py starts it in processes of their own."""

import math
import threading

import numpy as np
import torch
from tqdm.auto import tqdm

import fedlib as fl
from fedlib import checkpoint

ROUNDS = 400


def run(path=None, rounds=ROUNDS):
    """Run a small federation, with a checkpoint after every round."""
    rng = np.random.default_rng(0)
    clients = fl.ClientData(
        torch.as_tensor(rng.standard_normal((40, 1, 4, 4)), dtype=torch.float32),
        torch.as_tensor(rng.integers(3, size=40)),
        np.array([5, 8, 7, 20]),
    )
    config = fl.FedAvgConfig(
        num_rounds=rounds, local_steps=5, cohort_size=2, batch_size=3, client_lr=0.05
    )
    checkpoint.SHARE, before = math.inf, checkpoint.SHARE  # a checkpoint may take all the time
    try:
        model = fl.CNN((1, 4, 4), 3, width=2, num_features=8)
        return fl.run_fedavg(
            model,
            clients,
            config,
            seed=0,
            metrics=lambda params: {"norm": params["head.weight"].norm()},
            eval_every=3,
            checkpoint=path,
            progress=False,
        )
    finally:
        checkpoint.SHARE = before


def in_a_process(started, path, rounds):
    """Say when everything is imported, then run."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    started.send("here")
    run(path, rounds)
