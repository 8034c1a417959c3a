"""Chapter 3: what one local step can see of private labels, and the stored experiment."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad

import fedlib as fl
from studies import puzzle

C = 3
MODEL = fl.MLP((1, 2, 2), C, hidden=(4,)).double()
ORDERS = [torch.tensor(order) for order in permutations(range(C))]


def client(seed, n=6):
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.standard_normal((n, 1, 2, 2))), torch.as_tensor(
        rng.integers(C, size=n)
    )


def weights(seed):
    rng = np.random.default_rng(seed)
    return {
        name: torch.as_tensor(rng.standard_normal(p.shape)) for name, p in MODEL.named_parameters()
    }


def gradient(params, inputs, soft_labels):
    """Gradient of the cross-entropy with soft labels, flattened; independent of the engine."""

    def loss(p):
        return -(soft_labels * functional_call(MODEL, p, (inputs,)).log_softmax(1)).sum(1).mean()

    return torch.cat([g.flatten() for g in grad(loss)(params).values()])


def update(params, inputs, targets, local_steps):
    rows = np.tile(np.arange(len(inputs)), (local_steps, 1))
    new = fl.local_sgd(MODEL, params, inputs, targets, rows, lr=0.5).params
    return torch.cat([(new[name] - params[name]).flatten() for name in params])


def mean_update(params, inputs, classes, local_steps, orders=ORDERS):
    return torch.stack([update(params, inputs, o[classes], local_steps) for o in orders]).mean(0)


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=200)
def test_prop_private_mean(seed, n):
    params, (inputs, classes) = weights(seed), client(seed, n)
    uniform = torch.full((n, C), 1 / C, dtype=torch.float64)
    expected = -0.5 * gradient(params, inputs, uniform)
    assert float((mean_update(params, inputs, classes, 1) - expected).abs().max()) < 1e-13


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_prop_private_mean_bounds_the_spread(seed):
    """All 36 pairs of orders of two clients: variance exactly, against the bound."""
    params, clients, p = weights(seed), [client(seed), client(seed + 1)], np.array([0.3, 0.7])
    each = [[gradient(params, x, torch.eye(C).double()[o[z]]) for o in ORDERS] for x, z in clients]
    uniform = torch.full((6, C), 1 / C, dtype=torch.float64)
    centre = sum(q * gradient(params, x, uniform) for q, (x, _) in zip(p, clients, strict=True))
    spread = np.mean([float((p[0] * a + p[1] * b - centre).norm() ** 2) for a, b in product(*each)])
    variances = [
        np.mean([float((g - sum(gradients) / len(gradients)).norm() ** 2) for g in gradients])
        for gradients in each
    ]
    assert spread == pytest.approx(float(np.sum(p**2 * variances)), rel=1e-9)
    longest = [max(float(g.norm()) for g in gradients) for gradients in each]
    assert spread <= float(np.sum((p * longest) ** 2)) + 1e-12


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_prop_private_mean_bounds_the_spread_needs_independent_orders(seed):
    """Negative control: clients that share one random order do not average its noise away."""
    params, (inputs, _) = weights(seed), client(seed, 9)
    classes = torch.arange(9) % C
    each = [gradient(params, inputs, torch.eye(C).double()[o[classes]]) for o in ORDERS]
    centre = sum(each) / len(each)
    variance = np.mean([float((g - centre).norm() ** 2) for g in each])  # however many clients
    many = 10**4
    assert variance > max(float(g.norm()) for g in each) ** 2 / many


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_prop_private_mean_needs_one_local_step(seed):
    """Negative control: after two steps the mean update depends on the classes."""
    params, (inputs, classes) = weights(seed), client(seed, 9)
    classes = torch.arange(9) % C
    right, wrong = (mean_update(params, inputs, z, 2) for z in (classes, classes.sort()[0]))
    assert float((right - wrong).norm()) > 1e-6


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_prop_private_mean_needs_uniform_orders(seed):
    """Negative control: with one common order (shared labels) the gradient sees the classes."""
    params, (inputs, _) = weights(seed), client(seed, 9)
    classes = torch.arange(9) % C
    shared = [mean_update(params, inputs, z, 1, ORDERS[:1]) for z in (classes, classes.sort()[0])]
    assert float((shared[0] - shared[1]).norm()) > 1e-6


# --- The stored experiment --------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return fl.load_result("puzzle")


def test_stored_design_is_the_codes(stored):
    assert stored["design"] == {
        "methods": puzzle.METHODS,
        "fine_tuning": puzzle.FINE_TUNING,
        "fine_tuning_lrs": puzzle.FINE_TUNING_LRS,
        "grid": puzzle.GRID,
    }


def test_stored_choice_is_the_best_on_validation_clients(stored):
    for regime in puzzle.REGIMES:
        for method in puzzle.GRID:
            mine = [
                (row, row["accuracy"])
                for row in stored["tuning"]
                if (row["regime"], row["method"]) == (regime, method)
            ]
            assert len(mine) == len(puzzle.GRID[method]) * len(puzzle.TUNING_SEEDS)
            assert puzzle.choose(mine) == stored["chosen"][regime][method]


def test_which_choices_stand_at_an_end_of_their_grid(stored):
    """Elsewhere the best pair of step sizes lies inside; the chapter tells what the four mean."""
    found = {}
    for regime, method, part in product(puzzle.REGIMES, puzzle.GRID, puzzle.PARTS):
        pairs = {}
        for row in stored["tuning"]:
            if (row["regime"], row["method"]) == (regime, method) and method != "random":
                for lr, accuracy in row["accuracy"][part].items():  # None where it diverged
                    pairs.setdefault((row["client_lr"], float(lr)), []).append(accuracy or 0)
        pairs = {pair: np.mean(values) for pair, values in pairs.items()}
        ends = [{min(side), max(side)} for side in zip(*pairs, strict=True)]
        inside = [v for (a, b), v in pairs.items() if a not in ends[0] and b not in ends[1]]
        if pairs and max(pairs.values()) > max(inside):
            found[regime, method, part] = max(pairs.values()) - max(inside)
    assert set(found) == {
        ("shared", "one_step_same_steps", "head"),
        ("private", "one_step_same_rounds", "head"),
        ("balanced", "one_step_same_rounds", "head"),
        ("balanced", "one_step_same_rounds", "all"),
    }
    assert found["shared", "one_step_same_steps", "head"] < 0.002


def test_if_every_run_diverged_none_is_chosen():
    result = {part: {"0.1": None} for part in puzzle.PARTS}
    with pytest.raises(
        ValueError, match=r'client_lr \(0.2, 0.5\) .*"head" diverged.* smaller step'
    ):
        puzzle.choose([({"client_lr": lr}, result) for lr in (0.5, 0.2)])


def test_every_seed_is_stored_once_and_none_was_tuned_on(stored):
    for regime in puzzle.REGIMES:
        for method in puzzle.GRID:
            mine = [r for r in stored["final"] if (r["regime"], r["method"]) == (regime, method)]
            assert [row["seed"] for row in mine] == list(puzzle.FINAL_SEEDS)
    assert not set(puzzle.FINAL_SEEDS) & set(puzzle.TUNING_SEEDS)


def test_training_validation_and_new_classes_are_disjoint():
    kinds = [
        "".join(fl.load_glyphs(per_class=1, seed=0).class_names[:52]),
        puzzle.SYMBOLS,
        puzzle.DIGITS,
    ]
    assert len(set("".join(kinds))) == sum(map(len, kinds))


@pytest.mark.parametrize(
    ("regime", "method"),
    [("shared", "random"), ("private", "one_step_same_rounds"), ("balanced", "random")],
)
def test_a_stored_row_can_be_computed_again(stored, regime, method):
    """One seed from scratch; float32 training differs a little between processors."""
    chosen = stored["chosen"][regime][method]
    again = puzzle.final(regime, method, chosen, 3)
    row = next(
        r for r in stored["final"] if (r["regime"], r["method"], r["seed"]) == (regime, method, 3)
    )
    for part in puzzle.PARTS:
        assert again[part] == pytest.approx(row[part], abs=0.03)
