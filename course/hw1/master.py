# %% [markdown]
# # Homework 1: A round by hand
#
# *After Chapter 1. About 60 minutes. Hand in this notebook.*
#
# A federation fits a linear model. Client $i$ holds $n_i$ examples, the rows of $X_i$ with responses $y_i$, and its loss is $f_i(\theta)=\frac1{2n_i}|X_i\theta-y_i|^2$. Clients may differ in size. You write one round of FedAvg with full batches and all clients: each takes $\tau$ gradient steps of size $\alpha$ from the server's $\theta$, and the server moves the part $\beta$ of the way from $\theta$ to their average, weighted by numbers of examples.
#
# Use NumPy alone. Replace `...`; leave names and arguments as they are.

# %%
import numpy as np

# %% [markdown]
# **A. The gradient of one client** at $\theta$, an array of shape $(d,)$.


# %%
def gradient(theta, X, y):
    """Gradient of |X theta - y|^2 / (2 n); X is (n, d), y is (n,)."""
    # BEGIN SOLUTION
    return X.T @ (X @ theta - y) / len(y)
    # END SOLUTION


# %% public: the gradient of two examples (1 point)
X, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([1.0, 2.0])
assert np.allclose(gradient(np.zeros(2), X, y), [-0.5, -2.0])

# %% [markdown]
# **B. The round.** `clients` is a list of pairs $(X_i,y_i)$. Return a new array; leave `theta` as it was.


# %%
def fedavg_round(theta, clients, *, local_steps, lr, server_lr=1.0):
    """Return the server's parameters after one round of full-batch FedAvg."""
    # BEGIN SOLUTION
    total, average = sum(len(y) for _, y in clients), np.zeros_like(theta)
    for X, y in clients:
        local = theta.copy()
        for _ in range(local_steps):
            local -= lr * gradient(local, X, y)
        average += len(y) / total * local
    return theta + server_lr * (average - theta)
    # END SOLUTION


# %% public: one client takes gradient steps (1 point)
rng = np.random.default_rng(0)
X, y, theta = rng.standard_normal((5, 3)), rng.standard_normal(5), np.ones(3)
expected = theta.copy()
for _ in range(2):
    expected = expected - 0.1 * X.T @ (X @ expected - y) / 5
assert np.allclose(fedavg_round(theta, [(X, y)], local_steps=2, lr=0.1), expected)

# %% hidden: clients count by their size (3 points)
rng = np.random.default_rng()
data = [(rng.standard_normal((n, 3)), rng.standard_normal(n)) for n in (1, 4, 15)]
theta = rng.standard_normal(3)
X, y = np.vstack([X for X, _ in data]), np.concatenate([y for _, y in data])
one = theta - 0.1 * X.T @ (X @ theta - y) / 20  # one step is a gradient step on all examples
assert np.allclose(fedavg_round(theta, data, local_steps=1, lr=0.1), one)

# %% hidden: the server moves part of the way (3 points)
rng = np.random.default_rng()
data = [(rng.standard_normal((6, 2)), rng.standard_normal(6)) for _ in range(3)]
theta = 3 + rng.standard_normal(2)
whole = fedavg_round(theta, data, local_steps=3, lr=0.1)
for part in (0.0, 0.3, 1.5):
    moved = fedavg_round(theta, data, local_steps=3, lr=0.1, server_lr=part)
    assert np.allclose(moved, theta + part * (whole - theta))

# %% hidden: every client starts at the server (3 points)
rng = np.random.default_rng()
data = [(rng.standard_normal((6, 2)), rng.standard_normal(6)) for _ in range(4)]
theta = rng.standard_normal(2)
kept = theta.copy()
ends = [fedavg_round(theta, [client], local_steps=3, lr=0.2) for client in data]
assert np.allclose(fedavg_round(theta, data, local_steps=3, lr=0.2), np.mean(ends, axis=0))
assert np.array_equal(theta, kept), "theta was changed"

# %% [markdown] written: Two steps (4 points)
# Let $\tau=2$ and all clients take part. Show that the round is *not* a gradient step on any fixed function $\sum_iq_if_i$ with constant weights $q_i\ge0$, by an example with two clients on the line.
# BEGIN SOLUTION
# *Model answer.* Take $f_1=\frac12x^2$ and $f_2=2(x-1)^2$, with weights $\frac12$. Two steps multiply the distance to the client's own optimum by $(1-\alpha)^2$ and $(1-4\alpha)^2$, so the round moves $x$ by $-\frac12[(2\alpha-\alpha^2)x+(8\alpha-16\alpha^2)(x-1)]$. A gradient step of size $s$ on $q_1f_1+q_2f_2$ moves it by $-s[q_1x+4q_2(x-1)]$. They agree for all $x$ only if $sq_1=\alpha-\frac12\alpha^2$ and $sq_2=\alpha-2\alpha^2$. So the ratio $q_1:q_2$ would have to be $(1-\frac12\alpha):(1-2\alpha)$, which depends on $\alpha$: no weights serve every step size.
#
# *Rubric.* 1: the two clients' maps after two steps. 1: the average round. 1: comparison of coefficients for all $x$. 1: says what fails (weights depend on the step size), not that "it looks different". An answer that shows that *these* weights $p_i$ fail, but not every choice, earns 3.
# END SOLUTION
