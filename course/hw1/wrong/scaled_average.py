"""The server's step size multiplies the average, not the change.

Fails: the server moves part of the way
"""


def fedavg_round(theta, clients, *, local_steps, lr, server_lr=1.0):
    total, average = sum(len(y) for _, y in clients), 0
    for X, y in clients:
        local = theta.copy()
        for _ in range(local_steps):
            local -= lr * gradient(local, X, y)
        average = average + len(y) / total * local
    return server_lr * average
