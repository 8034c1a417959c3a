"""One order, drawn once, for all clients.

Fails: every class gets every number equally often
"""


def balanced_orders(num_clients, num_classes, *, rng):
    return np.tile(rng.permutation(num_classes), (num_clients, 1))
