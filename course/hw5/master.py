# %% [markdown]
# # Homework 5: Build a federation
#
# *After Chapters 3 and 11. About 75 minutes. Hand in this notebook.*
#
# You deal classes to clients, let clients number them as they like, and measure what the numbers have in common. NumPy alone; every function takes its randomness from a generator that it is given.

# %%
import numpy as np

# %% [markdown]
# **A. Deal.** Each of $M$ clients gets $C$ *distinct* classes of $K$, and the numbers of holders of any two classes differ by at most one.


# %%
def deal(num_clients, num_classes, per_client, *, rng):
    """Return an integer array (num_clients, per_client): the classes of each client."""
    # BEGIN SOLUTION
    holders, hands = np.zeros(num_classes, dtype=int), []
    for _ in range(num_clients):
        order = rng.permutation(num_classes)  # ties are broken at random
        hand = order[np.argsort(holders[order], kind="stable")][:per_client]
        holders[hand] += 1
        hands.append(hand)
    return np.array(hands)
    # END SOLUTION


# %% public: everybody gets their classes (1 point)
hands = deal(6, 5, 3, rng=np.random.default_rng(0))
assert hands.shape == (6, 3)
assert hands.min() >= 0 and hands.max() < 5

# %% hidden: distinct and even, and not always the same (3 points)
draws = set()
for M, K, C in ((10, 10, 2), (7, 5, 3), (12, 9, 4), (4, 6, 6)):
    for seed in range(5):
        hands = deal(M, K, C, rng=np.random.default_rng(seed))
        assert all(len(set(hand)) == C for hand in hands.tolist())
        holders = np.bincount(np.ravel(hands), minlength=K)
        assert holders.max() - holders.min() <= 1
        draws.add(np.asarray(hands).tobytes())
assert len(draws) > 10

# %% [markdown]
# **B. Orders.** Suppose all clients hold the *same* $C$ classes, and $M$ is a multiple of $C$. Draw an order for each client, a permutation of $0,\dots,C-1$, so that every class is given every number equally often. Who gets which order must be random.


# %%
def balanced_orders(num_clients, num_classes, *, rng):
    """Return (num_clients, num_classes): what each client calls each class."""
    # BEGIN SOLUTION
    shifts = rng.permutation(np.arange(num_clients) % num_classes)
    base = rng.permutation(num_classes)
    return (base + shifts[:, None]) % num_classes
    # END SOLUTION


# %% public: every row is an order (1 point)
orders = balanced_orders(6, 3, rng=np.random.default_rng(0))
assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(3), (6, 1)))

# %% hidden: every class gets every number equally often (3 points)
for M, C in ((6, 3), (8, 4), (5, 5), (12, 2)):
    orders = np.asarray(balanced_orders(M, C, rng=np.random.default_rng()))
    for column in orders.T:
        assert np.array_equal(np.bincount(column, minlength=C), np.full(C, M // C))
draws = {balanced_orders(8, 4, rng=np.random.default_rng(s)).tobytes() for s in range(10)}
assert len(draws) > 1

# %% [markdown]
# **C. The mean label.** Example $j$ has the true class `classes[j]` and the label `numbers[j]`: what its client calls the class, or **−1 if no client holds the example**. For each class average, over the examples that are held, the one-hot label minus the uniform label $(\frac1C,\dots,\frac1C)$. A class that nobody holds has the mean label zero.


# %%
def mean_labels(numbers, classes, num_labels, num_classes):
    """Return (num_classes, num_labels): the mean label of each class."""
    # BEGIN SOLUTION
    means = np.zeros((num_classes, num_labels))
    for c in range(num_classes):
        held = numbers[(classes == c) & (numbers >= 0)]
        if len(held):
            means[c] = np.eye(num_labels)[held].mean(axis=0) - 1 / num_labels
    return means
    # END SOLUTION


# %% public: two that agree (1 point)
found = mean_labels(np.array([1, 1]), np.array([0, 0]), 2, 1)
assert np.allclose(np.ptp(found), 1)

# %% hidden: examples that nobody holds do not count (3 points)
rng = np.random.default_rng()
classes, numbers = rng.integers(3, size=60), rng.integers(4, size=60)
alone = mean_labels(numbers, classes, 4, 3)
more = mean_labels(np.r_[numbers, np.full(20, -1)], np.r_[classes, rng.integers(3, size=20)], 4, 3)
assert np.allclose(more, alone)
assert np.allclose(np.ptp(mean_labels(np.array([-1, 0]), np.array([0, 0]), 4, 1)), 1)
assert np.allclose(mean_labels(np.array([-1, 2]), np.array([0, 1]), 4, 3)[[0, 2]], 0)

# %% hidden: measured from the uniform label (3 points)
every = mean_labels(np.arange(4), np.zeros(4, dtype=int), 4, 1)
assert np.allclose(every, 0)  # balanced: nothing in common
agreed = mean_labels(np.full(5, 2), np.zeros(5, dtype=int), 4, 1)
assert np.isclose(np.sum(agreed**2), 1 - 1 / 4)

# %% [markdown] written: What one step sees (4 points)
# Ten clients hold the same four classes. Once they use one common order, once independent random orders, once balanced ones. What is the expected squared length of a class's mean label in each case, and what follows for the *first* gradient of one local step per round? At most ten lines.
# BEGIN SOLUTION
# *Model answer.* (Balanced orders need a multiple of four clients; say twelve.) One order: $1-\frac14$. Independent: each client's centred label has squared length $1-\frac14$ and mean zero, so the mean of $M$ independent ones has $\frac1M(1-\frac14)$ in expectation. Balanced: exactly zero. At the start the gradient of the average loss depends on labels only through their mean for each class (it is linear in the labels), so with balanced orders the first averaged gradient is that of uniform labels, which knows nothing of the classes; with independent orders the class part is shorter by $1/\sqrt M$.
#
# *Rubric.* 1: the three lengths (2 if independence is used for the second). 1: the gradient is linear in the label. 1: notices that ten clients cannot be balanced among four numbers.
# END SOLUTION
