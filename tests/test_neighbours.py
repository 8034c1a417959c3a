"""FedAvg's neighbours, against plain loops over torch.optim.SGD, and what theory says of them."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fedavg import CONFIG, distance, federation, plain_fedavg
from torch import nn

import fedlib as fl
from fedlib import linear
from fedlib.fedavg import draw_round

HEAD_STEPS = 2
ALGORITHMS = {
    "FedRep": lambda *args, **options: fl.run_fedrep(*args, head_steps=HEAD_STEPS, **options),
    "SCAFFOLD": fl.run_scaffold,
    "Per-FedAvg": lambda *args, **options: fl.run_fedavg(*args, step=fl.per_fedavg(0.3), **options),
}
EVEN = replace(CONFIG, local_steps=4)


def mlp(seed=0):
    return fl.MLP((1, 4, 4), 3, hidden=(5,), seed=seed).double()


def batch_loss(model, x, y):
    outputs = model(x)
    if y.is_floating_point():
        return (outputs - y).square().mean() / 2
    return nn.functional.cross_entropy(outputs, y)


def steps(model, params, data, rows, lr):
    """Take SGD steps on some parameters of a model, in place; return the mean loss."""
    x, y = data
    optimizer, met = torch.optim.SGD(list(params), lr=lr), []
    for batch in rows:
        loss = batch_loss(model, x[batch], y[batch])
        model.zero_grad()
        loss.backward()
        optimizer.step()
        met.append(loss.item())
    return np.mean(met)


def average(models, weights):
    states = [fl.params_of(model) for model in models]
    return {
        name: sum(w * s[name] for w, s in zip(weights, states, strict=True)) / sum(weights)
        for name in states[0]
    }


def put(model, params):
    for name, p in params.items():
        model.get_parameter(name).data.copy_(p)


def rounds(clients, config, seed, local_steps):
    for t in range(config.num_rounds):
        rng = np.random.default_rng([seed, t])
        cohort, batches = draw_round(clients, replace(config, local_steps=local_steps), rng=rng)
        yield cohort, batches, clients.sizes[cohort].tolist()


def plain_fedrep(model, clients, config, head_steps, seed):
    server = copy.deepcopy(model)
    heads = [copy.deepcopy(model.head) for _ in range(len(clients))]
    losses = []
    for cohort, batches, sizes in rounds(clients, config, seed, head_steps + config.local_steps):
        bodies, met = [], []
        for i, rows in zip(cohort, batches, strict=True):
            client = fl.BodyHead(copy.deepcopy(server.body), heads[i])
            client.forward = lambda x, c=client: type(model).forward(c, x)
            steps(client, client.head.parameters(), clients[i], rows[:head_steps], config.client_lr)
            rest = rows[head_steps:]
            met.append(steps(client, client.body.parameters(), clients[i], rest, config.client_lr))
            bodies.append(client.body)
        old = fl.params_of(server.body)
        new = average(bodies, sizes)
        put(server.body, {n: p + config.server_lr * (new[n] - p) for n, p in old.items()})
        losses.append(np.average(met, weights=sizes))
    return fl.params_of(server), [fl.params_of(head) for head in heads], losses


def plain_scaffold(model, clients, config, seed):
    """Algorithm 1 of Karimireddy et al., for clients of one size, with the server's control."""
    server, lr, tau = copy.deepcopy(model), config.client_lr, config.local_steps
    zero = {name: torch.zeros_like(p) for name, p in fl.params_of(model).items()}
    c, controls = zero, [zero] * len(clients)
    for cohort, batches, sizes in rounds(clients, config, seed, tau):
        assert len(set(clients.sizes.tolist())) == 1
        x, ends, changes = fl.params_of(server), [], []
        for i, rows in zip(cohort, batches, strict=True):
            client, (inputs, targets) = copy.deepcopy(server), clients[i]
            optimizer = torch.optim.SGD(client.parameters(), lr=lr)
            for batch in rows:
                optimizer.zero_grad()
                batch_loss(client, inputs[batch], targets[batch]).backward()
                for name, p in client.named_parameters():
                    p.grad += c[name] - controls[i][name]
                optimizer.step()
            y = fl.params_of(client)
            new = {n: controls[i][n] - c[n] + (x[n] - y[n]) / (tau * lr) for n in x}
            changes.append({n: new[n] - controls[i][n] for n in x})
            controls[i] = new
            ends.append(client)
        mean = average(ends, sizes)
        put(server, {n: x[n] + config.server_lr * (mean[n] - x[n]) for n in x})
        share = len(cohort) / len(clients)
        c = {n: c[n] + share * sum(d[n] for d in changes) / len(cohort) for n in x}
    return fl.params_of(server)


def plain_per_fedavg(model, clients, config, inner_lr, seed):
    server = copy.deepcopy(model)
    for cohort, batches, sizes in rounds(clients, config, seed, config.local_steps):
        ends = []
        for i, rows in zip(cohort, batches, strict=True):
            client, (x, y) = copy.deepcopy(server), clients[i]
            for first, second in zip(rows[::2], rows[1::2], strict=True):
                trial = copy.deepcopy(client)
                steps(trial, trial.parameters(), clients[i], [first], inner_lr)
                grads = torch.autograd.grad(
                    batch_loss(trial, x[second], y[second]), list(trial.parameters())
                )
                for p, g in zip(client.parameters(), grads, strict=True):
                    p.data -= config.client_lr * g
            ends.append(client)
        x, mean = fl.params_of(server), average(ends, sizes)
        put(server, {n: x[n] + config.server_lr * (mean[n] - x[n]) for n in x})
    return fl.params_of(server)


# --- FedRep -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["loop", "threads", "stacked"])
@pytest.mark.parametrize(("cohort_size", "batch_size"), [(3, 4), (None, None)])
@pytest.mark.parametrize("make", [mlp, lambda: fl.CNN((1, 4, 4), 3, width=2).double()])
def test_fedrep_equals_a_plain_loop_over_torch_sgd(make, cohort_size, batch_size, strategy):
    clients, model = federation(), make()
    config = replace(CONFIG, cohort_size=cohort_size, batch_size=batch_size)
    run = dict(head_steps=HEAD_STEPS, seed=5, progress=False, strategy=strategy)
    result = fl.run_fedrep(model, clients, config, **run)
    params, heads, losses = plain_fedrep(model, clients, config, HEAD_STEPS, 5)
    assert distance(result.params, params) < 1e-12
    assert np.allclose(result.history.loss, losses, rtol=1e-12)
    assert len(result.personal) == len(clients)
    for own, head in zip(result.personal, heads, strict=True):
        assert distance(own, params | {f"head.{n}": p for n, p in head.items()}) < 1e-12


def test_a_client_that_was_never_drawn_keeps_the_initial_head_and_gets_the_body():
    clients, model = federation(), mlp()
    config = replace(CONFIG, cohort_size=1, num_rounds=2)
    run = dict(head_steps=1, seed=0, progress=False)
    params, _, personal = fl.run_fedrep(model, clients, config, **run)
    drawn = {int(i) for cohort, *_ in rounds(clients, config, 0, 4) for i in cohort}
    assert 0 < len(drawn) < len(clients)
    for i, own in enumerate(personal):
        assert (distance(own, params) == 0) == (i not in drawn)
    start = fl.params_of(model)
    assert all(torch.equal(params[n], start[n]) for n in params if n.startswith("head."))


def test_what_fedrep_returns_can_be_evaluated():
    clients, model = federation(), mlp()
    personal = fl.run_fedrep(model, clients, CONFIG, head_steps=9, seed=0, progress=False).personal
    assert fl.evaluate(model, personal, clients).shape == (len(clients),)


def test_fedrep_leaves_frozen_layers_as_they_are():
    clients, model = federation(), mlp()
    model.body[1].bias.requires_grad_(False)
    params = fl.run_fedrep(model, clients, CONFIG, head_steps=1, seed=0, progress=False).params
    before = fl.params_of(model)
    moved = [name for name in before if not torch.equal(before[name], params[name])]
    assert moved == ["body.1.weight"]


def population(tasks):
    """Rows √d times the unit vectors: every client's loss is that of the linear theory."""
    inputs = np.sqrt(tasks.d) * np.tile(np.eye(tasks.d), (tasks.num_clients, 1))
    targets = np.sqrt(tasks.d) * tasks.theta.ravel()
    sizes = np.full(tasks.num_clients, tasks.d)
    return fl.ClientData(torch.as_tensor(inputs), torch.as_tensor(targets), sizes)


def test_fedrep_learns_the_representation_with_one_step_on_the_body_and_one_step_fedavg_does_not():
    tasks = linear.LinearTasks.random(6, 2, 6, rng=np.random.default_rng(0), mean_size=0.5)
    clients, model = population(tasks), fl.LinearNet(6, 2, seed=4).double()
    config = fl.FedAvgConfig(
        num_rounds=150, local_steps=1, cohort_size=3, batch_size=None, client_lr=0.9
    )
    run = dict(seed=0, progress=False, eval_every=150)
    learned = fl.run_fedrep(model, clients, config, head_steps=4, **run)
    one_step = fl.run_fedavg(model, clients, replace(config, cohort_size=None), **run)

    def far(params):
        return linear.subspace_distance(params["body.weight"].numpy().T, tasks.B_star)

    assert far(learned.params) < 1e-7
    floor = linear.one_step_floor(tasks, fl.params_of(model)["body.weight"].numpy().T)
    assert far(one_step.params) >= floor - 1e-9 > 0.8
    losses = fl.evaluate(model, learned.personal, clients, metric="loss")
    assert losses.max() < 1e-12
    assert fl.evaluate(model, one_step.params, clients, metric="loss").mean() > 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(head_steps=0), ValueError, "Invalid head_steps=0: must be at least 1"),
        (dict(head_steps=1.5), TypeError, "Invalid head_steps=1.5: not an integer"),
        (dict(model=nn.Linear(16, 3)), ValueError, 'no trainable parameter is named "head.…"'),
        (
            dict(model=fl.BodyHead(nn.Flatten(), nn.Linear(16, 3))),
            ValueError,
            'no trainable parameter has another name than "head.…". Use a model with a body and a',
        ),
        (dict(model=None), TypeError, "Invalid model of type NoneType"),
        (dict(clients=[]), TypeError, "Invalid clients of type list"),
        (dict(seed=-1), ValueError, "Invalid seed=-1"),
        (dict(config=replace(CONFIG, cohort_size=9)), ValueError, "Invalid cohort_size=9"),
        (dict(strategy="merged"), ValueError, "Invalid strategy: it merges clients"),
        (
            dict(strategy="merged", head_steps=1),
            ValueError,
            'it merges clients, but each has a head.weight of its own. Use "auto" or',
        ),
    ],
)
def test_fedrep_refuses(as_readers_run_it, change, error, message):
    run = dict(model=mlp(), clients=federation(), config=CONFIG, head_steps=2, seed=0)
    with pytest.raises(error, match=message):
        fl.run_fedrep(**(run | change), progress=False)


# --- SCAFFOLD ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["loop", "threads", "stacked"])
@pytest.mark.parametrize(("cohort_size", "batch_size"), [(2, 3), (None, None)])
@pytest.mark.parametrize("make", [mlp, lambda: fl.CNN((1, 4, 4), 3, width=2).double()])
def test_scaffold_equals_the_published_algorithm(make, cohort_size, batch_size, strategy):
    clients, model = federation((7,) * 4), make()
    config = replace(CONFIG, cohort_size=cohort_size, batch_size=batch_size, num_rounds=6)
    run = dict(seed=5, progress=False, strategy=strategy)
    result = fl.run_scaffold(model, clients, config, **run)
    assert distance(result.params, plain_scaffold(model, clients, config, 5)) < 1e-12
    fedavg = fl.run_fedavg(model, clients, config, **run)
    assert distance(result.params, fedavg.params) > 1e-6
    assert result.history.loss[0] == pytest.approx(fedavg.history.loss[0], rel=1e-12)


def test_scaffold_with_one_step_and_every_client_is_distributed_sgd():
    """However the clients differ in size: the corrections cancel in the mean."""
    clients, model = federation(), mlp()
    config = replace(CONFIG, cohort_size=None, local_steps=1, num_rounds=9)
    a, b = (
        algorithm(model, clients, config, seed=0, progress=False)
        for algorithm in (fl.run_scaffold, fl.run_fedavg)
    )
    assert distance(a.params, b.params) < 1e-13


def test_scaffold_leaves_frozen_layers_as_they_are():
    clients, model = federation(), mlp()
    model.body.requires_grad_(False)
    params = fl.run_scaffold(model, clients, CONFIG, seed=0, progress=False).params
    before = fl.params_of(model)
    moved = [name for name in before if not torch.equal(before[name], params[name])]
    assert moved == ["head.weight", "head.bias"]


def quadratics():
    """Clients' curvatures and optima, (4, 3), their data and the model; they differ in size."""
    rng = np.random.default_rng(2)
    curvatures, optima = rng.uniform(0.4, 1.6, (4, 3)), rng.standard_normal((4, 3))
    rows = np.sqrt(3 * curvatures)[:, None] * np.eye(3)  # second moment diag(curvatures)
    sizes = np.array([3, 6, 3, 12])
    inputs = np.concatenate([np.tile(rows[i], (sizes[i] // 3, 1)) for i in range(4)])
    targets = (inputs * np.repeat(optima, sizes, axis=0)).sum(1)
    clients = fl.ClientData(torch.as_tensor(inputs), torch.as_tensor(targets), sizes)
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)).double()
    return curvatures, optima, clients, model


@pytest.mark.parametrize("cohort_size", [None, 2])
def test_scaffold_reaches_the_optimum_where_fedavg_stops_at_its_own_fixed_point(cohort_size):
    curvatures, optima, clients, model = quadratics()
    config = fl.FedAvgConfig(
        num_rounds=150, local_steps=5, cohort_size=None, batch_size=None, client_lr=0.2
    )
    run = dict(seed=0, progress=False, eval_every=150)
    pulls = {
        fl.run_scaffold: curvatures,
        fl.run_fedavg: 1 - (1 - config.client_lr * curvatures) ** config.local_steps,  # Theorem 2.1
    }
    fixed_points = {}
    for algorithm, pull in pulls.items():
        fixed_points[algorithm] = np.average(optima, axis=0, weights=clients.sizes[:, None] * pull)
    optimum, biased = fixed_points.values()
    partly = replace(config, cohort_size=cohort_size)
    found = fl.run_scaffold(model, clients, partly, **run).params["0.weight"].numpy()[0]
    assert abs(found - optimum).max() < 1e-10
    found = fl.run_fedavg(model, clients, config, **run).params["0.weight"].numpy()[0]
    assert abs(found - biased).max() < 1e-10
    assert abs(biased - optimum).max() > 0.01


# --- Per-FedAvg -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["loop", "threads", "stacked"])
@pytest.mark.parametrize("make", [mlp, lambda: fl.CNN((1, 4, 4), 3, width=2).double()])
def test_per_fedavg_equals_a_plain_loop(make, strategy):
    clients, model = federation(), make()
    run = dict(step=fl.per_fedavg(0.3), seed=5, progress=False, strategy=strategy)
    result = fl.run_fedavg(model, clients, EVEN, **run)
    assert distance(result.params, plain_per_fedavg(model, clients, EVEN, 0.3, 5)) < 1e-12


def test_per_fedavg_with_tiny_trial_steps_is_sgd_with_half_as_many():
    clients, model = federation(), mlp()
    config = replace(EVEN, batch_size=None)
    run = dict(seed=0, progress=False)
    pairs = fl.run_fedavg(model, clients, config, step=fl.per_fedavg(1e-13), **run)
    half = fl.run_fedavg(model, clients, replace(config, local_steps=2), **run)
    assert distance(pairs.params, half.params) < 1e-11
    trial = fl.run_fedavg(model, clients, config, step=fl.per_fedavg(0.1), **run)
    assert distance(trial.params, half.params) > 1e-4


def test_per_fedavg_descends_the_loss_after_adaptation():
    """On quadratics of one curvature a, to the optimum of the adapted loss: mean of the c_i."""
    inputs, targets = torch.ones(2, 1).double(), torch.tensor([1.0, -2.0]).double()
    clients = fl.ClientData(inputs, targets, np.array([1, 1]))
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0)).double()
    config = fl.FedAvgConfig(
        num_rounds=300, local_steps=2, cohort_size=None, batch_size=None, client_lr=0.2
    )
    step = fl.per_fedavg(0.5)
    params = fl.run_fedavg(model, clients, config, seed=0, step=step, progress=False).params
    assert float(params["0.weight"]) == pytest.approx(-0.5, abs=1e-12)


def test_an_odd_number_of_steps_of_per_fedavg_is_refused_before_the_first_round(tmp_path):
    model, message = mlp(), r"Invalid local_steps=3: the steps of per_fedavg\(0.1\) come in groups"
    with pytest.raises(ValueError, match=message + " of 2. Use a multiple of 2."):
        fl.run_fedavg(
            model,
            federation(),
            CONFIG,
            seed=0,
            step=fl.per_fedavg(0.1),
            checkpoint=tmp_path / "run",
        )
    assert not list(tmp_path.iterdir())
    x, y = federation()[0]
    with pytest.raises(ValueError, match=message):
        fl.local_sgd(
            model,
            fl.params_of(model),
            x,
            y,
            np.zeros((3, 1), dtype=int),
            lr=0.1,
            step=fl.per_fedavg(0.1),
        )
    with pytest.raises(ValueError, match="Invalid inner_lr=0.0: not positive"):
        fl.per_fedavg(0.0)


# --- FedAvg by other names ----------------------------------------------------------------------


def test_fedprox_without_its_term_is_fedavg_and_with_a_strong_one_stays_where_it_was():
    clients, model = federation(), mlp()
    run = dict(seed=0, progress=False)
    fedavg = fl.run_fedavg(model, clients, CONFIG, **run)
    almost = fl.run_fedavg(model, clients, CONFIG, step=fl.proximal(1e-300), **run)
    assert distance(fedavg.params, almost.params) < 1e-14
    start = fl.params_of(model)
    pulled = fl.run_fedavg(model, clients, CONFIG, step=fl.proximal(9.0), **run)
    assert distance(pulled.params, start) < 0.6 * distance(fedavg.params, start)


def test_reptile_is_fedavg_with_a_server_step_if_clients_are_of_one_size():
    clients, model = federation((6,) * 4), mlp()
    for outer_lr in (1.0, 0.3):
        config = replace(CONFIG, server_lr=outer_lr)
        server = copy.deepcopy(model)
        for cohort, batches, _ in rounds(clients, config, 3, config.local_steps):
            start, ends = fl.params_of(server), []
            for i, rows in zip(cohort, batches, strict=True):
                task = copy.deepcopy(server)
                steps(task, task.parameters(), clients[i], rows, config.client_lr)
                ends.append(fl.params_of(task))
            for name, p in start.items():
                change = sum(end[name] - p for end in ends) / len(ends)
                server.get_parameter(name).data.copy_(p + outer_lr * change)
        found = fl.run_fedavg(model, clients, config, seed=3, progress=False).params
        assert distance(found, fl.params_of(server)) < 1e-13
    assert distance(plain_fedavg(model, clients, replace(CONFIG, server_lr=1.0), 3), found) > 1e-6


def test_fedavg_on_the_pool_is_plain_sgd():
    clients, model = federation(), mlp()
    pool = clients.pool()
    assert len(pool) == 1
    assert torch.equal(pool.inputs, clients.inputs)
    assert torch.equal(pool.targets, clients.targets)
    assert pool.digest != clients.digest
    config = replace(CONFIG, cohort_size=None, server_lr=1.0)
    plain = copy.deepcopy(model)
    for _, [rows], _ in rounds(pool, config, 4, config.local_steps):
        steps(plain, plain.parameters(), (clients.inputs, clients.targets), rows, config.client_lr)
    found = fl.run_fedavg(model, pool, config, seed=4, progress=False).params
    assert distance(found, fl.params_of(plain)) < 1e-13


def test_local_training_only_is_fine_tuning_from_the_start():
    clients, model = federation(), mlp()
    run = dict(steps=4, lr=0.1, batch_size=3, seed=2)
    alone = fl.fine_tune(model, fl.params_of(model), clients, **run)
    for i, own in enumerate(alone):
        client = copy.deepcopy(model)
        rng = np.random.default_rng([2, i])
        rows = fl.draw_batches(int(clients.sizes[i]), local_steps=4, batch_size=3, rng=rng)
        steps(client, client.parameters(), clients[i], rows, 0.1)
        assert distance(own, fl.params_of(client)) < 1e-13


# --- Promises ---------------------------------------------------------------------------------


def bits(result):
    personal = getattr(result, "personal", [])
    values = [p for params in (result.params, *personal) for p in params.values()]
    return [p.tolist() for p in values], result.history.loss.tolist()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stop", [1, 4])  # in the first round: with what clients start from
def test_a_resumed_run_is_bit_identical(tmp_path, name, memory_format, stop):
    algorithm = ALGORITHMS[name]
    clients = federation(shape=(4, 8, 8), dtype=torch.float32)
    model = fl.CNN((4, 8, 8), 3, width=4).to(memory_format=memory_format)
    run = dict(seed=0, progress=False)
    config = replace(EVEN, cohort_size=2, num_rounds=6)
    whole = algorithm(model, clients, config, **run)
    path, calls = tmp_path / "run", []

    def stop_in_that_round(params):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        algorithm(model, clients, config, checkpoint=path, metrics=stop_in_that_round, **run)
    assert len(calls) == stop
    again = algorithm(model, clients, config, checkpoint=path, **run)
    assert bits(again) == bits(whole)
    assert bits(algorithm(model, clients, config, checkpoint=path, **run)) == bits(whole)


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path):
    clients, model, path = federation(), mlp(), tmp_path / "run"
    run = dict(seed=0, progress=False, checkpoint=path)
    fl.run_fedrep(model, clients, CONFIG, head_steps=2, **run)
    with pytest.raises(ValueError, match="head_steps=2 there, 3 here"):
        fl.run_fedrep(model, clients, CONFIG, head_steps=3, **run)
    with pytest.raises(ValueError, match="head_steps=2 there, None here"):
        fl.run_fedavg(model, clients, CONFIG, **run)
    with pytest.raises(ValueError, match="step=sgd there, control_variate here"):
        fl.run_scaffold(model, clients, CONFIG, **run)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_strategies_and_cuts_agree(name):
    clients, model = federation((5, 9, 3, 12, 7)), mlp()
    chunks = fl.Strategy(stack=True, chunk=2, threads=2)
    results = [
        ALGORITHMS[name](model, clients, EVEN, seed=0, progress=False, strategy=strategy)
        for strategy in ("auto", "loop", fl.Strategy(threads=2), "stacked", chunks)
    ]
    for result in results[1:]:
        assert distance(result.params, results[0].params) < 1e-12
        assert np.allclose(result.history.loss, results[0].history.loss, rtol=1e-12)


COMPILED = """
import warnings
import numpy as np, torch
import fedlib as fl

rng = np.random.default_rng(0)
inputs = torch.as_tensor(rng.standard_normal((20, 6)))
clients = fl.ClientData(inputs, torch.as_tensor(rng.integers(3, size=20)), np.array([5, 9, 6]))
model = fl.MLP((6,), 3, hidden=(4,)).double()
warnings.simplefilter("error", RuntimeWarning)  # the one that says that compiling failed
runs = [
    (4, fl.run_fedavg, dict(step=fl.per_fedavg(0.3))),
    (None, fl.run_fedavg, dict(step=fl.per_fedavg(0.3))),  # full batches are compiled together
    (4, fl.run_fedrep, dict(head_steps=2)),
    (4, fl.run_scaffold, {}),
]
for batch_size, algorithm, options in runs:
    config = fl.FedAvgConfig(
        num_rounds=2, local_steps=4, cohort_size=2, batch_size=batch_size, client_lr=0.1
    )
    found, expected = (
        algorithm(model, clients, config, seed=0, progress=False, strategy=name, **options)
        for name in ("compiled", "stacked")
    )
    for name, p in expected.params.items():
        assert torch.allclose(found.params[name], p, rtol=0, atol=1e-12)
print("equal")
"""


@pytest.mark.slow
def test_compiled_steps_equal_the_stacked_ones():
    """In a process of its own: the shape checks of this one cannot be compiled."""
    run = [sys.executable, "-c", COMPILED]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_model_and_the_global_generators_are_left_alone(name):
    clients, model = federation(), mlp()
    before, generator = fl.params_of(model), torch.random.get_rng_state()
    state = np.random.get_state()[1].copy()
    ALGORITHMS[name](model, clients, EVEN, seed=0, progress=False)
    assert distance(before, fl.params_of(model)) == 0
    assert torch.equal(generator, torch.random.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_metrics_are_given_the_servers_parameters_and_history_is_kept(name):
    clients, model = federation(), mlp()
    seen = []

    def metrics(params):
        seen.append(params)
        return {"loss": fl.evaluate(model, params, clients, metric="loss").mean()}

    run = dict(seed=0, progress=False, metrics=metrics, eval_every=3)
    result = ALGORITHMS[name](model, clients, EVEN, **run)
    assert result.history.round_num.tolist() == [3, 4]
    assert len(result.history["loss"]) == 2
    assert distance(seen[-1], result.params) == 0
    assert list(result.params) == list(fl.params_of(model))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_divergence_names_the_round_and_the_step_size(name):
    clients = fl.ClientData(1e3 * torch.ones(4, 2), torch.ones(4), np.array([4]))
    config = replace(EVEN, cohort_size=None, client_lr=10.0, num_rounds=200)
    with pytest.raises(FloatingPointError, match=r"round \d+.*: .* smaller than 10.0"):
        ALGORITHMS[name](fl.LinearNet(2, 1), clients, config, seed=0, progress=False)


# --- What the engine needs for them -------------------------------------------------------------


def test_clients_may_start_from_parameters_of_their_own():
    clients, model, cohort = federation(), mlp(), np.array([3, 1])
    rng = np.random.default_rng(0)
    own = {"head.bias": torch.as_tensor(rng.standard_normal((2, 3)))}
    batches = [
        fl.draw_batches(int(clients.sizes[i]), local_steps=2, batch_size=3, rng=rng) for i in cohort
    ]
    params = fl.params_of(model)
    for strategy in ("loop", "stacked"):
        trained = fl.map_clients(
            model, params, clients, cohort, batches, lr=0.1, client_params=own, strategy=strategy
        )
        for place in range(len(cohort)):
            client = copy.deepcopy(model)
            put(client, {"head.bias": own["head.bias"][place]})
            steps(client, client.parameters(), clients[cohort[place]], batches[place], 0.1)
            found = {name: p[place] for name, p in trained.params.items()}
            assert distance(found, fl.params_of(client)) < 1e-13


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"head.bias": torch.zeros(1, 3)}, "Invalid head.bias of 1 rows"),
        (
            {"neck": torch.zeros(2, 3)},
            "Invalid client_params: neck is no parameter. Use names of params.",
        ),
    ],
)
def test_starts_of_their_own_are_checked(own, message):
    clients, model = federation(), mlp()
    rows = [np.array([[0, 1]])] * 2
    with pytest.raises(ValueError, match=message):
        fl.map_clients(
            model, fl.params_of(model), clients, np.array([0, 1]), rows, lr=0.1, client_params=own
        )
