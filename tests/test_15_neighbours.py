"""Chapter 15: what a body step is worth, what SCAFFOLD does to heads, and the stored study."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.linalg import norm
from scipy import stats

import fedlib as fl
from fedlib import linear

many = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# --- What a body step is worth ------------------------------------------------------------------


def tangent(B, B_star):
    """Tangent of the largest principal angle, from the angles themselves."""
    return np.tan(linear.principal_angles(B, B_star).max())


def body_step(seed, h, alpha, *, stretch=1.0, own=True):
    """Play one averaged body step; return the tangent's factor and ε.

    Heads are ± a random basis, one direction of it stretched.
    """
    rng = np.random.default_rng(seed)
    d, k = 7, 3
    basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
    basis[0] *= stretch
    heads = np.r_[basis, -basis]
    tasks = linear.LinearTasks(np.linalg.qr(rng.standard_normal((d, k)))[0], heads)
    B = linear.matched_start(tasks, lr=alpha, distance=rng.uniform(0.1, 0.95), rng=rng)
    moved = np.zeros_like(B)
    for theta in tasks.theta:
        w = h * alpha * B.T @ (theta if own else tasks.theta[0])
        moved += np.outer(B @ w - theta, w) / len(heads)
    factor = tangent(B - alpha * moved, tasks.B_star) / tangent(B, tasks.B_star)
    return factor, alpha**2 / k


@many
@given(seed=seeds, h=st.floats(0, 1), alpha=st.floats(0.05, 1.5))
def test_prop_body_worth(seed, h, alpha):
    factor, eps = body_step(seed, h, alpha)
    kept = 1 - h**2 * eps
    assert kept / (kept + h * eps) - 1e-9 <= factor <= 1 / (1 + h * eps) + 1e-9


def test_prop_body_worth_needs_heads_of_the_clients_own():
    factor, eps = body_step(0, 1, 0.9, own=False)
    assert factor == pytest.approx(1, abs=1e-9)
    assert factor > 1 / (1 + eps) + 0.1


def test_prop_body_worth_needs_heads_in_all_directions():
    """With one direction all but missing, the largest angle hardly moves."""
    found = [body_step(seed, 1, 0.9, stretch=0.1) for seed in range(20)]
    bound = 1 / (1 + found[0][1] * 0.67)  # with λ's mean, (1 + 1 + 0.01) / 3 of the former
    assert max(factor for factor, _ in found) > bound + 0.05


# --- SCAFFOLD -----------------------------------------------------------------------------------


def local_heads(seed, tau, rounds, eigenvalues, *, controls=True, drawn=None):
    """Train heads on a fixed body, by the published updates; return each round's heads (τ+1, M, k).

    ``drawn`` are the clients that take part; others keep their control.
    """
    rng = np.random.default_rng(seed)
    k, alpha, clients = len(eigenvalues), 0.3, 5
    turn = np.linalg.qr(rng.standard_normal((k, k)))[0]
    G = turn * np.array(eigenvalues) @ turn.T
    b = rng.standard_normal((clients, k))
    w, c_i, c, path = np.zeros(k), np.zeros((clients, k)), np.zeros(k), []
    who = np.arange(clients) if drawn is None else np.array(drawn)
    for _ in range(rounds):
        heads = np.tile(w, (clients, 1))
        steps = [heads]
        for _ in range(tau):
            gradient = heads @ G / alpha - b
            heads = heads - alpha * (gradient + (c - c_i if controls else 0))
            steps.append(heads)
        new = c_i[who] - c + (w - heads[who]) / (tau * alpha)
        c = c + (new - c_i[who]).sum(0) / clients
        c_i[who] = new
        w = heads[who].mean(0)
        path.append(np.array(steps))
    return np.array(path), G


def deviation(heads):
    return heads - heads.mean(axis=-2, keepdims=True)


@many
@given(
    seed=seeds,
    tau=st.integers(1, 8),
    eigenvalues=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=3),
)
def test_prop_scaffold_heads(seed, tau, eigenvalues):
    path, G = local_heads(seed, tau, 5, eigenvalues)
    plain, _ = local_heads(seed, tau, 5, eigenvalues, controls=False)
    eye = np.eye(len(G))
    Q = eye - sum(np.linalg.matrix_power(eye - G, r) for r in range(tau)) / tau
    for t in range(5):
        expected = deviation(plain[t]) @ np.linalg.matrix_power(Q, t)
        assert abs(deviation(path[t]) - expected).max() < 1e-9
    values = np.linalg.eigvalsh((Q + Q.T) / 2)
    assert values.min() >= -1e-9
    assert values.max() <= 1 - 1 / tau + 1e-9


def test_prop_scaffold_heads_needs_short_steps():
    """With G = 2I the local heads jump back and forth, and the controls learn nothing."""
    path, _ = local_heads(0, 4, 6, [2.0, 2.0])
    spread = [norm(deviation(heads[1])) for heads in path]
    assert min(spread) > (1 - 1e-9) * max(spread) > 0.1


def test_prop_scaffold_heads_needs_all_clients():
    """Who never takes part keeps its task's whole pull."""
    path, _ = local_heads(0, 4, 30, [1.0, 1.0], drawn=[0, 1, 2])
    last = deviation(path[-1])[1]
    everybody, _ = local_heads(0, 4, 30, [1.0, 1.0])
    assert norm(deviation(everybody[-1])[1]) < 1e-2 < 0.1 < norm(last)


def circle(lr, distance=0.9):
    turn = 2 * np.pi * np.arange(12) / 12
    rng = np.random.default_rng(0)
    B_star = np.linalg.qr(rng.standard_normal((6, 2)))[0]
    tasks = linear.LinearTasks(B_star, np.c_[np.cos(turn), np.sin(turn)])
    B0 = linear.matched_start(tasks, lr=lr, distance=distance, rng=rng)
    data = fl.ClientData.from_parts(
        np.sqrt(6) * np.tile(np.eye(6), (12, 1)),
        np.sqrt(6) * tasks.theta.ravel(),
        list(np.arange(72).reshape(12, 6)),
    )
    net = fl.LinearNet(6, 2).double()
    net.body.weight.data = torch.as_tensor(B0.T.copy())
    return tasks, data, net


def test_scaffold_stops_where_fedavg_is_after_as_many_rounds_as_local_steps():
    """By the library: the chapter's claim, with a moving body."""
    tau, lr = 4, 0.1
    tasks, data, net = circle(lr)

    def far(params):
        return linear.subspace_distance(params["body.weight"].numpy().T, tasks.B_star)

    def config(rounds):
        everybody = dict(cohort_size=None, batch_size=None, client_lr=lr)
        return fl.FedAvgConfig(num_rounds=rounds, local_steps=tau, **everybody)

    run = dict(seed=0, progress=False, eval_every=200)
    stopped = far(fl.run_scaffold(net, data, config(15 * tau), **run).params)
    later = far(fl.run_scaffold(net, data, config(20 * tau), **run).params)
    fedavg = [far(fl.run_fedavg(net, data, config(t), **run).params) for t in (tau, 20 * tau)]
    assert abs(stopped - later) < 1e-4
    assert abs(later - fedavg[0]) < 0.002
    assert fedavg[1] < 0.6 < later


# --- What the exercises claim -------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1, 3, 5])
def test_every_body_with_head_zero_is_a_fixed_point_of_scaffold_with_exact_controls(tau):
    """Mean head zero; controls that equal the clients' gradients (Exercise 15.1)."""
    tasks, _, _ = circle(0.2)
    rng = np.random.default_rng(1)
    B, w = rng.standard_normal((6, 2)), np.zeros(2)
    c = [-B.T @ theta for theta in tasks.theta]
    for theta, c_i in zip(tasks.theta, c, strict=True):
        body, head = B, w
        for _ in range(tau):
            r = body @ head - theta
            body, head = (
                body - 0.2 * np.outer(r, head),
                head - 0.2 * (body.T @ r - c_i + np.mean(c, axis=0)),
            )
        assert abs(body - B).max() < 1e-12
        assert abs(head).max() < 1e-12


@pytest.mark.parametrize("tau", [2, 3])
def test_fedprox_that_forgets_all_but_the_last_step_is_per_fedavg_for_two_steps_only(tau):
    _, data, net = circle(0.2)
    everybody = dict(cohort_size=None, batch_size=None, client_lr=0.2)
    found = []
    for rule, steps in ((fl.proximal(5.0), tau), (fl.per_fedavg(0.2), 2)):
        config = fl.FedAvgConfig(num_rounds=3, local_steps=steps, **everybody)
        params = fl.run_fedavg(net, data, config, seed=0, step=rule, progress=False).params
        found.append(params["body.weight"])
    assert (float((found[0] - found[1]).abs().max()) < 1e-12) == (tau == 2)


# --- The stored study ---------------------------------------------------------------------------

NEAR, MAIN = fl.load_result("neighbours"), fl.load_result("one_step")
SEEDS = range(5)
FEDREP = dict(
    algorithm=["fedrep", 5],
    federation=["private", 5, 100, 0.0],
    local_steps=45,
    matching="rounds",
)


def algorithm(setting):
    """Name and constant of a neighbour's setting."""
    name, *constant = setting.get("algorithm", ["reptile", setting.get("server_lr")])
    return name, constant[0] if constant else None


def mean_accuracy(row, budget):
    """Mean over all new clients with so many images per class, from the row itself."""
    return np.mean([row["head"][kind][budget] for kind in ("known", "unseen", "cifar10")])


def neighbours(federation, seed, budget="20"):
    """Accuracies by name; FedAvg and one step with as many gradient steps among them."""
    rows = [
        (record, row)
        for record in (NEAR, MAIN)
        for row in record["final"]
        if row["seed"] == seed and row["setting"]["federation"][:2] == federation
    ]
    found = {
        algorithm(r["setting"])[0]: mean_accuracy(r, budget) for record, r in rows if record is NEAR
    }
    assert len(found) == 6 == sum(record is NEAR for record, _ in rows)
    for name, tau in {"fedavg": 50, "one_step": 1}.items():
        (found[name],) = (
            mean_accuracy(row, budget)
            for record, row in rows
            if record is MAIN
            and (row["setting"]["local_steps"], row["setting"]["matching"]) == (tau, "steps")
        )
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_labels_scaffold_is_ahead_of_fedavg_and_fedrep_behind(seed):
    found = neighbours(["shared", 20], seed)
    assert found["one_step"] > found["scaffold"] > found["fedavg"] > found["fedrep"]
    assert found["fedavg"] > found["per_fedavg"]
    for name in ("fedprox", "reptile"):
        assert abs(found[name] - found["fedavg"]) < 0.015
    assert min(found, key=found.get) == "local"
    near = {name for name in found if name not in ("one_step", "fedavg")}
    assert max(near, key=found.get) == "scaffold"


@pytest.mark.parametrize("seed", SEEDS)
def test_private_labels_fedrep_is_ahead_and_scaffold_loses_most_of_the_lead(seed):
    found = neighbours(["private", 5], seed)
    assert max(found, key=found.get) == "fedrep"
    for name in ("fedprox", "reptile"):
        assert abs(found[name] - found["fedavg"]) < 0.015
    assert max(found["per_fedavg"], found["scaffold"]) < found["fedavg"] - 0.01
    assert min(found, key=found.get) == "local"


def lead(federation, one, other, budget="20"):
    """How far one algorithm is ahead of the other: mean over kinds and seeds, and half-width."""
    found = [neighbours(federation, seed, budget) for seed in SEEDS]
    return fl.mean_interval(np.array([each[one] - each[other] for each in found]))


def test_private_labels_scaffold_is_compatible_with_a_quarter_of_the_lead():
    fedavg = lead(["private", 5], "fedavg", "one_step")
    scaffold = lead(["private", 5], "scaffold", "one_step")
    assert abs(scaffold.mean - fedavg.mean / 4) < scaffold.half_width
    assert scaffold.mean + scaffold.half_width < fedavg.mean
    first_draws = 100 * (1 - 0.9**40) / 400
    assert first_draws == pytest.approx(1 / 4, abs=0.01)


def test_shared_labels_scaffolds_lead_goes_with_many_images():
    few, many = (lead(["shared", 20], "scaffold", "fedavg", b) for b in ("20", "100"))
    assert few.mean > few.half_width
    assert abs(many.mean) < many.half_width


def test_scaffold_and_fedrep_change_places():
    """By more than 0.02 on average, which one seed of tuning can resolve."""
    shared, private = (lead(f, "scaffold", "fedrep") for f in (["shared", 20], ["private", 5]))
    assert (shared.mean, private.mean) == pytest.approx((0.031, -0.042), abs=6e-4)
    assert shared.mean > shared.half_width
    assert private.mean < -private.half_width


def test_most_neighbours_tie_with_fedavg():
    """Within 0.02, which one seed of tuning can resolve, whatever the interval over seeds."""
    ties = {"shared": {"fedprox", "reptile", "scaffold", "fedrep"}}
    ties["private"] = {"fedprox", "reptile", "per_fedavg", "fedrep"}
    for regime, classes in (("shared", 20), ("private", 5)):
        for name in ("fedprox", "reptile", "per_fedavg", "fedrep", "scaffold"):
            mean, _ = lead([regime, classes], name, "fedavg")
            assert (abs(mean) <= 0.02) == (name in ties[regime])


def test_the_search_was_as_unequal_as_the_chapter_says():
    tried = {}
    for entry in NEAR["tuning"]:
        key = entry["setting"]["federation"][0], algorithm(entry["setting"])[0]
        tried[key] = tried.get(key, 0) + len(entry["tried"])
    for regime in ("shared", "private"):
        assert tried[regime, "scaffold"] in (3, 4)
        assert all(17 <= tried[regime, name] <= 23 for name in ("fedrep", "reptile"))


def prox_worth(mu, alpha=0.05, tau=50):
    """Exercise 15.2, step by step."""
    heads = [(1 - (-alpha * mu) ** s) / (1 + alpha * mu) for s in range(tau)]
    return sum((1 - alpha * mu) ** (tau - 1 - s) * h for s, h in enumerate(heads))


def test_at_equal_step_sizes_worth_ranks_validation_accuracies():
    assert prox_worth(0.1) == pytest.approx(43, abs=0.5)
    assert prox_worth(1.0) == pytest.approx(18, abs=0.6)

    def validated(record, setting):
        (tried,) = (e["tried"] for e in record["tuning"] if e["setting"] == setting)
        return max(a for a in tried["0.05"].values() if a is not None)

    plain = dict(federation=["private", 5, 100, 0.0], matching="steps")
    points = [
        (worth, validated(MAIN, plain | {"local_steps": tau})) for tau, worth in ((50, 49), (1, 0))
    ]
    for setting in (entry["setting"] for entry in NEAR["tuning"]):
        name, constant = algorithm(setting)
        worths = {
            "fedprox": prox_worth(constant) if name == "fedprox" else 0,
            "reptile": 49 * (constant or 0),
            "fedrep": 50 - (constant or 0),
            "per_fedavg": 25 if constant == 0.05 else None,  # trial steps as long as the client's
        }
        if setting["federation"][0] == "private" and worths.get(name) is not None:
            points.append((worths[name], validated(NEAR, setting)))
    assert len(points) == 17
    fedrep = next(e["tried"]["0.05"] for e in NEAR["tuning"] if e["setting"] == FEDREP)
    best = max(a for a in fedrep.values() if a is not None)
    assert (best, points[0][1]) == pytest.approx((0.423, 0.427), abs=6e-4)  # at 0.05, level
    small = [point for point in points if point[0] <= 49]
    assert len(small) == 14
    assert stats.spearmanr(*zip(*small, strict=True)).statistic == pytest.approx(0.9, abs=0.005)
    assert stats.spearmanr(*zip(*points, strict=True)).statistic == pytest.approx(0.67, abs=0.005)


def test_every_constant_was_chosen_between_two_others():
    for entry in NEAR["chosen"]:
        name, constant = algorithm(entry["setting"])
        values = {
            value
            for other, value in (algorithm(e["setting"]) for e in NEAR["tuning"])
            if other == name and value is not None
        }
        assert constant is None or min(values) < constant < max(values)


def test_every_step_size_was_chosen_between_two_others():
    tried = {
        str(entry["setting"]): [float(lr) for lr in entry["tried"]] for entry in NEAR["tuning"]
    }
    for entry in NEAR["chosen"]:
        lrs = tried[str(entry["setting"])]
        assert min(lrs) < entry["client_lr"] < max(lrs)
