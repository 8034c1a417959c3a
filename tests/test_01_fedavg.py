"""Chapter 1: one local step is a gradient step; when it is unbiased, and when not."""

from itertools import combinations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad

import fedlib as fl

MODEL = fl.MLP((1, 2, 2), 3, hidden=(4,)).double()
START = fl.params_of(MODEL)


def federation(sizes, seed):
    rng = np.random.default_rng(seed)
    n = int(sum(sizes))
    inputs = torch.as_tensor(rng.standard_normal((n, 1, 2, 2)))
    return fl.ClientData(inputs, torch.as_tensor(rng.integers(3, size=n)), np.array(sizes))


def gradient(inputs, targets):
    """Gradient of the mean loss at START, flattened, by torch.func (the engine uses autograd)."""
    loss = lambda p: fl.task_loss(functional_call(MODEL, p, (inputs,)), targets)  # noqa: E731
    return torch.cat([g.flatten() for g in grad(loss)(START).values()])


def change(clients, **settings):
    """What one round does to START, flattened."""
    defaults = dict(num_rounds=1, local_steps=1, cohort_size=None, batch_size=None)
    config = fl.FedAvgConfig(**(defaults | settings))
    new, _ = fl.run_round(MODEL, START, clients, config, rng=np.random.default_rng(0))
    return torch.cat([(new[name] - START[name]).flatten() for name in START])


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)
rates = st.floats(0.01, 2.0)


@given(sizes, rates, rates, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_prop_one_step(sizes, client_lr, server_lr, seed):
    clients = federation(sizes, seed)
    expected = -client_lr * server_lr * gradient(clients.inputs, clients.targets)
    actual = change(clients, client_lr=client_lr, server_lr=server_lr)
    assert float((actual - expected).abs().max()) < 1e-13


@given(sizes, st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_prop_one_step_with_cohorts_and_batches(sizes, m, b, seed):
    """The round draws the cohort, then each client's batch; the oracle draws the same."""
    clients, m = federation(sizes, seed), min(m, len(sizes))
    rng = np.random.default_rng(0)
    cohort = rng.choice(len(sizes), m, replace=False) if m < len(sizes) else range(m)
    expected, total = 0.0, 0
    for i in cohort:
        x, y = clients[i]
        rows = fl.draw_batches(len(x), local_steps=1, batch_size=b, rng=rng)[0]
        expected = expected - 0.3 * len(x) * gradient(x[rows], y[rows])
        total += len(x)
    actual = change(clients, cohort_size=m, batch_size=b, client_lr=0.3)
    assert float((actual - expected / total).abs().max()) < 1e-13


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_prop_one_step_needs_one_local_step(seed):
    """Negative control: two local steps of half the size are not that gradient step."""
    clients = federation([5, 7, 3], seed)
    expected = -0.5 * gradient(clients.inputs, clients.targets)
    actual = change(clients, client_lr=0.25, local_steps=2)
    assert float((actual - expected).abs().max()) > 1e-6


def mean_over_cohorts(sizes, m, seed):
    """Relative error of the mean over all cohorts of the one-step change against -lr grad F."""
    clients = federation(sizes, seed)
    everyone = range(len(sizes))
    changes = [change(clients.select(s), client_lr=0.1) for s in combinations(everyone, m)]
    expected = -0.1 * gradient(clients.inputs, clients.targets)
    return float((torch.stack(changes).mean(0) - expected).norm() / expected.norm())


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_prop_unbiased(num_clients, size, m, seed):
    assert mean_over_cohorts([size] * num_clients, min(m, num_clients), seed) < 1e-10


def test_prop_unbiased_over_batches():
    """All batches of b examples are equally likely, so their mean gradient is the full one."""
    clients = federation([5], 0)
    batches = [gradient(clients.inputs[list(r)], clients.targets[list(r)])
               for r in combinations(range(5), 2)]  # fmt: skip
    full = gradient(clients.inputs, clients.targets)
    assert float((torch.stack(batches).mean(0) - full).abs().max()) < 1e-14
    rng = np.random.default_rng(1)
    draws = [
        tuple(sorted(fl.draw_batches(5, local_steps=1, batch_size=2, rng=rng)[0]))
        for _ in range(4000)
    ]
    counts = np.array([draws.count(pair) for pair in combinations(range(5), 2)])
    assert np.abs(counts - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_prop_unbiased_needs_equal_sizes():
    """Negative control: with ragged clients the mean over cohorts is not the gradient of F."""
    assert mean_over_cohorts([9, 9, 1, 2], 2, 0) > 1e-2
