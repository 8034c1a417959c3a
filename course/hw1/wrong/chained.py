"""A client starts where the one before it ended.

Fails: clients count by their size; every client starts at the server
"""


def fedavg_round(theta, clients, *, local_steps, lr, server_lr=1.0):
    total, average, local = sum(len(y) for _, y in clients), 0, theta.copy()
    for X, y in clients:
        for _ in range(local_steps):
            local -= lr * gradient(local, X, y)
        average = average + len(y) / total * local
    return theta + server_lr * (average - theta)
