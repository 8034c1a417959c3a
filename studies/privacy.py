"""What privacy for clients costs the representation, against the theorem (Chapter 17).

Clients' updates are clipped to a length C, and Gaussian noise of z C / M per entry is added to the
average of M clients. The accountant that says which z a budget allows is ``dp-accounting``, of
which Flower's own is a thin layer. It asks for older packages than the book has, so `make results`
installs it in a folder of its own.
"""

import time
from pathlib import Path

import numpy as np

from fedlib import linear
from studies.record import commit_of, provenance, save_result

EPSILONS, DELTA, ROUNDS = (1, 4, 8), 1e-6, 600
CLIENTS = (10**4, 10**5, 10**6)
SEEDS = (0, 1, 2)

# An instance inside the theorem's conditions: half of the clients have either head.
PAIR = linear.LinearTasks(np.eye(4)[:, :1], np.array([[1.0], [-1.0]]))
TAU, D0 = 20, 0.1
RHO = 1 - D0**2
ETA = min(RHO**2 / 80 / (12 + 9 * (TAU - 1) * D0**2), RHO / 20 / (TAU - 1))
EPS = ETA * (TAU - 1)
LIMIT = ETA * RHO**2 / 120
"""The largest perturbation that the theorem admits."""


def play(noise: float, seed: int, clip: float = np.inf) -> dict[str, float]:
    """Run FedAvg on clipped updates; the average gets noise in every entry, of body and head.

    Returns:
        ``D``, the distance in normalised variables, as the mean over the last 100 rounds; ``nu``,
        the largest noise on the body in a round, in the same; ``longest`` update before clipping.
    """
    rng, alpha = np.random.default_rng(seed), ETA**0.5
    start = np.array([RHO**0.5, D0, 0.0, 0.0]) / alpha**0.5
    server = np.append(start, 0.0)  # body and head
    distances, largest, longest = [], 0.0, 0.0
    for _ in range(ROUNDS):
        ends = []
        for theta in PAIR.theta:
            b, w = server[:4], server[4]
            for _ in range(TAU):
                residual = b * w - theta
                b, w = b - alpha * residual * w, w - alpha * (b @ residual)
            ends.append(np.append(b, w))
        updates = np.array(ends) - server
        lengths = np.linalg.norm(updates, axis=1)
        longest = max(longest, float(lengths.max()))
        updates *= np.minimum(1, clip / lengths)[:, None]
        pushed = noise * rng.standard_normal(5)
        largest = max(largest, alpha**0.5 * float(np.linalg.norm(pushed[:4])))
        server = server + updates.mean(axis=0) + pushed
        distances.append(alpha**0.5 * float(np.linalg.norm(server[1:4])))
    return {"D": float(np.mean(distances[-100:])), "nu": largest, "longest": longest}


def multiplier(epsilon: float) -> float:
    """Return the least noise multiplier z for which all rounds are (epsilon, DELTA)-private."""
    import dp_accounting as dp
    from dp_accounting import pld

    return dp.calibrate_dp_mechanism(
        pld.PLDAccountant,
        lambda z: dp.SelfComposedDpEvent(dp.GaussianDpEvent(z), ROUNDS),
        epsilon,
        DELTA,
        bracket_interval=dp.ExplicitBracketInterval(1, 500),
        tol=1e-2,
    )


def compute(output: Path, workers: int) -> None:
    """Measure the floor that noise leaves, for budgets and numbers of clients; three seeds."""
    commit, began = commit_of(), time.monotonic()
    exact = play(0.0, 0)
    clip, rows = 1.2 * exact["longest"], []  # so that hardly an update is clipped
    for epsilon in EPSILONS:
        z = multiplier(epsilon)
        for clients in CLIENTS:
            runs = [play(z * clip / clients, seed, clip) for seed in SEEDS]
            nu = max(run["nu"] for run in runs)
            rows.append(
                {
                    "epsilon": epsilon,
                    "clients": clients,
                    "multiplier": z,
                    "nu": nu,
                    "floors": [run["D"] for run in runs],
                    "longest": max(run["longest"] for run in runs),
                    "bound": (1 - 0.75 * EPS * RHO) ** (ROUNDS - 100) * D0
                    + 4 * nu / (3 * EPS * RHO),
                }
            )
    record = {
        "rows": rows,
        "clip": clip,
        "limit": LIMIT,
        "delta": DELTA,
        "rounds": ROUNDS,
        "without": exact["D"],
        "provenance": provenance(
            "python -m studies privacy",
            seeds=SEEDS,
            wall_seconds=time.monotonic() - began,
            commit=commit,
        ),
    }
    save_result(output / "privacy.json", record)
