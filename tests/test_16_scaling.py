"""Chapter "From a laptop to a cluster": why the ways to run a round agree, and when they do not.

The gradients on one side are always those of one client alone, from its own unpadded batch.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

import fedlib as fl
from fedlib.losses import example_losses, task_loss

many = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
batch_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(seed, sizes, real):
    """One batch per client: 3 inputs, and labels out of 4, or real responses."""
    x, y = normal(seed, sum(sizes), 3), normal(seed + 1, sum(sizes))
    y = y if real else (10 * y).long().abs() % 4
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def network(real, norm=None):
    """A small network that is smooth, so that rounding cannot meet a kink."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = [nn.Linear(5, 1), nn.Flatten(0)] if real else [nn.Linear(5, 4)]
        return nn.Sequential(nn.Linear(3, 5), *([norm] if norm else []), nn.Tanh(), *last).double()


def losses_of(model):
    """The mean loss of a batch; and a padded one's, with weights."""

    def loss(params, x, y):
        return task_loss(functional_call(model, params, (x,)), y)

    def padded(params, x, y, shares):
        return example_losses(functional_call(model, params, (x,)), y) @ shares

    return loss, padded


def pad(pairs, filling):
    """All batches in one tensor, filled up with ``filling``, and the weights."""
    width = max(len(x) for x, _ in pairs)
    X = filling.expand(len(pairs), width, 3).clone()
    Y = torch.zeros(len(pairs), width, dtype=pairs[0][1].dtype)
    shares = torch.zeros(len(pairs), width, dtype=torch.float64)
    for i, (x, y) in enumerate(pairs):
        X[i, : len(x)], Y[i, : len(x)], shares[i, : len(x)] = x, y, 1 / len(x)
    return X, Y, shares


def far(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def of(stack, i):
    return {name: p[i] for name, p in stack.items()}


def apart(model, k, seed):
    """k clients' parameters, all different, stacked."""
    params = fl.params_of(model)
    return {
        name: p + 0.3 * normal(seed + j, k, *p.shape) for j, (name, p) in enumerate(params.items())
    }


# --- Padding -----------------------------------------------------------------------------------


@given(seeds, batch_sizes, st.booleans(), st.floats(-100, 100))
@many
def test_prop_padding(seed, sizes, real, filling):
    model, pairs = network(real), batches(seed, sizes, real)
    (loss, padded), params = losses_of(model), fl.params_of(model)
    X, Y, shares = pad(pairs, torch.tensor(filling).double())
    for i, pair in enumerate(pairs):
        args = params, X[i], Y[i], shares[i]
        assert float(abs(padded(*args) - loss(params, *pair))) < 1e-12
        assert far(grad(padded)(*args), grad(loss)(params, *pair)) < 1e-12


def test_prop_padding_needs_examples_that_do_not_feel_each_other():
    """Negative control: batch normalisation, which fedlib refuses."""
    model = network(False, nn.BatchNorm1d(5, track_running_stats=False))
    (loss, padded), params, pairs = losses_of(model), fl.params_of(model), batches(0, [4, 9], False)
    X, Y, shares = pad(pairs, torch.zeros(1).double())
    short = grad(padded)(params, X[0], Y[0], shares[0])
    assert far(short, grad(loss)(params, *pairs[0])) > 1e-2
    full = grad(padded)(params, X[1], Y[1], shares[1])
    assert far(full, grad(loss)(params, *pairs[1])) < 1e-12  # nothing was added to this one
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    clients = fl.ClientData(x, y, torch.tensor([4, 9]).numpy())
    config = fl.FedAvgConfig(
        num_rounds=1, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.1
    )
    with pytest.raises(ValueError, match="depends on the others"):
        fl.run_fedavg(model, clients, config, seed=0, progress=False)


def test_prop_padding_needs_finite_losses():
    """Negative control: zero times infinity."""
    model, pairs = network(True), batches(0, [4, 9], True)
    _, padded = losses_of(model)
    X, Y, shares = pad(pairs, torch.tensor(torch.inf).double())
    spoiled = grad(padded)(fl.params_of(model), X[0], Y[0], shares[0])
    assert all(g.isnan().any() for name, g in spoiled.items() if name == "0.weight")


# --- One backward pass for a stack ---------------------------------------------------------------


@given(seeds, batch_sizes, st.booleans())
@many
def test_prop_stacked_gradient(seed, sizes, real):
    model, pairs = network(real), batches(seed, sizes, real)
    loss, padded = losses_of(model)
    stack, batch = apart(model, len(sizes), seed), pad(pairs, torch.zeros(1).double())
    together = grad(lambda stack: vmap(padded)(stack, *batch).sum())(stack)
    for i, pair in enumerate(pairs):
        assert far(of(together, i), grad(loss)(of(stack, i), *pair)) < 1e-12


@pytest.mark.parametrize("step", [fl.sgd, fl.momentum(0.9), fl.proximal(0.1)], ids=lambda s: s.name)
def test_prop_stacked_gradient_makes_updates_of_the_stack_those_of_the_clients(step):
    model, pairs = network(False), batches(0, [3, 8, 5], False)
    loss, padded = losses_of(model)
    start, batch = apart(model, 3, 0), pad(pairs, torch.zeros(1).double())
    total = grad(lambda stack: vmap(padded)(stack, *batch).sum())

    def three_steps(params, gradient):
        values = list(params.values())
        state = step.init(values, None)
        for _ in range(3):
            grads = gradient(dict(zip(params, values, strict=True)))
            values, state = step.update(values, list(grads.values()), state, 0.3)
        return dict(zip(params, values, strict=True))

    stack = three_steps(start, total)
    for i, (x, y) in enumerate(pairs):
        own = three_steps(of(start, i), lambda p, x=x, y=y: grad(loss)(p, x, y))
        assert far(of(stack, i), own) < 1e-12


def test_prop_stacked_gradient_needs_losses_of_own_parameters_only():
    """Negative control: parameters are normalised over the stack before use."""
    model, pairs = network(False), batches(0, [3, 8, 5], False)
    _, padded = losses_of(model)
    stack, batch = apart(model, 3, 0), pad(pairs, torch.zeros(1).double())

    def mixed(stack):
        return vmap(padded)({name: p - p.mean(0) for name, p in stack.items()}, *batch)

    together = grad(lambda stack: mixed(stack).sum())(stack)
    own = grad(lambda stack: mixed(stack)[1])(stack)  # of client 1's loss
    assert far(of(together, 1), of(own, 1)) > 1e-2


# --- Merging -------------------------------------------------------------------------------------


def merged_and_average(seed, sizes, weights, rule, steps=1):
    """Average of the clients after their steps, and as many steps on the weighted union."""
    model, pairs = network(False), batches(seed, sizes, False)
    (loss, padded), params = losses_of(model), fl.params_of(model)
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    shares = torch.cat([p_i.expand(n) / n for p_i, n in zip(p, sizes, strict=True)])

    def moved(gradient):
        values = params
        for _ in range(steps):
            grads = gradient(values)
            values = {name: rule(value, grads[name]) for name, value in values.items()}
        return values

    own = [moved(lambda at, pair=pair: grad(loss)(at, *pair)) for pair in pairs]
    average = {name: sum(w * q[name] for w, q in zip(p, own, strict=True)) for name in params}
    return moved(lambda at: grad(padded)(at, x, y, shares)), average


def sgd(value, gradient):
    return value - 0.7 * gradient


def skewed(value, gradient):
    """Linear in the gradient, but not a multiple of it."""
    return value - 0.7 * gradient.flip(0) - 0.1 * gradient.cumsum(0)


def sign(value, gradient):
    return value - 0.7 * gradient.sign()


@given(seeds, batch_sizes, st.sampled_from([sgd, skewed]), st.data())
@many
def test_prop_merged_step(seed, sizes, rule, data):
    k = len(sizes)
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=k, max_size=k))
    merged, average = merged_and_average(seed, sizes, weights, rule)
    assert far(merged, average) < 1e-12


@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4))
@many
def test_prop_merged_step_is_what_the_engine_does(seed, sizes, batch_size):
    """A round of the strategy "merged", ragged and with batches, is that of the loop."""
    pairs = batches(seed, sizes, False)
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    clients = fl.ClientData(x, y, torch.tensor(sizes).numpy())
    config = fl.FedAvgConfig(
        num_rounds=1, local_steps=1, cohort_size=None, batch_size=batch_size, client_lr=0.7
    )
    options = dict(seed=seed, progress=False)
    merged, loop = (
        fl.run_fedavg(network(False), clients, config, strategy=strategy, **options).params
        for strategy in ("merged", "loop")
    )
    assert far(merged, loop) < 1e-12


def test_prop_merged_step_needs_one_step():
    merged, average = merged_and_average(0, [3, 8, 5], [3, 8, 5], sgd, steps=2)
    assert far(merged, average) > 1e-3


def test_prop_merged_step_needs_a_linear_rule():
    merged, average = merged_and_average(0, [3, 8, 5], [3, 8, 5], sign)
    assert far(merged, average) > 0.1


def test_prop_merged_step_needs_the_weights_of_examples():
    """Negative control: the plain mean over the union, where weights do not follow sizes."""
    model, pairs = network(False), batches(0, [3, 8, 5], False)
    (loss, _), params = losses_of(model), fl.params_of(model)
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    pooled = grad(loss)(params, x, y)
    _, average = merged_and_average(0, [3, 8, 5], [1, 1, 1], sgd)
    assert far({name: sgd(p, pooled[name]) for name, p in params.items()}, average) > 1e-3


# --- A carried velocity (an exercise) ------------------------------------------------------------


def test_velocities_that_clients_carry_through_rounds_average_to_one():
    model, pairs = network(False), batches(0, [3, 8, 5], False)
    (loss, _), params = losses_of(model), fl.params_of(model)
    p = torch.tensor([3, 8, 5]).double() / 16
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    nothing = {name: torch.zeros_like(value) for name, value in params.items()}
    apart, together, v, u = params, params, [nothing] * 3, nothing
    for _ in range(5):
        g = [grad(loss)(apart, *pair) for pair in pairs]
        v = [{n: 0.9 * v[i][n] + g[i][n] for n in params} for i in range(3)]
        apart = {n: sum(p[i] * (apart[n] - 0.3 * v[i][n]) for i in range(3)) for n in params}
        h = grad(loss)(together, x, y)
        u = {n: 0.9 * u[n] + h[n] for n in params}
        together = {n: together[n] - 0.3 * u[n] for n in params}
    assert far(apart, together) < 1e-12
