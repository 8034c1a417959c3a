"""Clients count equally, whatever their size.

Fails: clients count by their size
"""


def fedavg_round(theta, clients, *, local_steps, lr, server_lr=1.0):
    ends = []
    for X, y in clients:
        local = theta.copy()
        for _ in range(local_steps):
            local -= lr * gradient(local, X, y)
        ends.append(local)
    return theta + server_lr * (np.mean(ends, axis=0) - theta)
