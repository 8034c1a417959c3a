"""Every strategy, against one client at a time with torch.optim; and what stacking relies on."""

import copy
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import fedlib as fl
from fedlib import cohort as cohorts
from fedlib import compiled
from fedlib.stacked import stacked_call
from fedlib.strategy import STRATEGIES, Strategy, choose_strategy, resolve_strategy
from fedlib.validate import check_model

SHAPE, CLASSES = (2, 6, 6), 3
NAMES = ["auto", "loop", "threads", "stacked"]
BF16 = Strategy(stack=True, autocast=torch.bfloat16)


class Residual(nn.Module):
    """A forward of its own, a buffer, normalisation, a hook, a weight used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        return x + self.scale * self.norm(self.inner(self.inner(x)).relu())


class Flipped(nn.Linear):
    def forward(self, x):
        return super().forward(x.flip(-1))


def sequential(*body):
    return fl.BodyHead(nn.Sequential(nn.Flatten(), nn.Linear(72, 12), *body), nn.Linear(12, 3))


def hooked():
    model = sequential(nn.Tanh())
    model.body[1].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def convolutional():
    return fl.BodyHead(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()
        ),
        nn.Linear(16, 3),
    )


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrised():
    layer = nn.Linear(12, 12)
    parametrize.register_parametrization(layer, "weight", Halved())
    return sequential(layer, nn.ReLU())


MODELS = {
    "MLP": lambda: fl.MLP(SHAPE, CLASSES, hidden=(8, 5)),
    "CNN": lambda: fl.CNN(SHAPE, CLASSES, width=3, num_features=6),
    "convolutional": convolutional,
    "residual": lambda: sequential(Residual()),
    "subclass": lambda: sequential(Flipped(12, 12), nn.ReLU()),
    "one ReLU twice": lambda: sequential(relu := nn.ReLU(), nn.Linear(12, 12), relu),
    "hooked": hooked,
    "parametrised": parametrised,
    "no bias": lambda: sequential(nn.Linear(12, 12, bias=False), nn.Sigmoid()),
    "batch norm, eval": lambda: sequential(nn.BatchNorm1d(12)).eval(),
}


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[name]().double()


def federation(sizes, dtype=torch.float64):
    rng = np.random.default_rng(sum(sizes))
    inputs = torch.as_tensor(rng.standard_normal((sum(sizes), *SHAPE)), dtype=dtype)
    labels = torch.as_tensor(rng.integers(CLASSES, size=sum(sizes)))
    return fl.ClientData(inputs, labels, np.array(sizes))


def draw(clients, cohort, *, local_steps, batch_size, seed=0):
    rng = np.random.default_rng(seed)
    options = dict(local_steps=local_steps, batch_size=batch_size, rng=rng)
    return [fl.draw_batches(int(clients.sizes[i]), **options) for i in cohort]


def one_by_one(model, clients, cohort, batches, optimizer):
    """Parameters and mean losses of each client, by deepcopy and an optimiser of torch."""
    params, losses = [], []
    for i, rows in zip(cohort, batches, strict=True):
        own = copy.deepcopy(model)
        steps, met = optimizer(own.parameters()), []
        x, y = clients[i]
        for row in rows:
            loss = nn.functional.cross_entropy(own(x[row]), y[row])
            steps.zero_grad()
            loss.backward()
            steps.step()
            met.append(loss.item())
        params.append(fl.params_of(own))
        losses.append(np.mean(met))
    return params, losses


def in_order(trained):
    """Parameters and losses by place in the cohort."""
    rows = [{name: p[i] for name, p in trained.params.items()} for i in range(len(trained.losses))]
    return rows, trained.losses.tolist()


def far(found, expected):
    return max(
        float((a[name] - b[name]).abs().max())
        for a, b in zip(found, expected, strict=True)
        for name in b
    )


def plain_sgd(params):
    return torch.optim.SGD(params, lr=0.1)


RAGGED = federation([5, 9, 1, 9, 3, 7, 9])
COHORT = np.array([6, 0, 2, 5, 3, 4])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("batch_size", [3, None])
def test_each_strategy_equals_one_client_at_a_time(name, strategy, batch_size):
    model = make(name)
    batches = draw(RAGGED, COHORT, local_steps=3, batch_size=batch_size)
    trained = fl.map_clients(
        model, fl.params_of(model), RAGGED, COHORT, batches, lr=0.1, strategy=strategy
    )
    params, losses = in_order(trained)
    expected, expected_losses = one_by_one(model, RAGGED, COHORT, batches, plain_sgd)
    assert far(params, expected) < 1e-13
    assert np.allclose(losses, expected_losses, rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_merging_equals_the_weighted_average_of_one_step(name):
    model = make(name)
    batches = draw(RAGGED, COHORT, local_steps=1, batch_size=4)
    weights = np.array([1.0, 0.5, 3, 0, 2, 1])
    whole = Strategy(merge=True)
    for strategy in ("merged", replace(whole, chunk=1), replace(whole, chunk=4)):
        total = fl.sum_clients(
            model,
            fl.params_of(model),
            RAGGED,
            COHORT,
            batches,
            lr=0.1,
            weights=weights,
            strategy=strategy,
        )
        found = total.average(fl.params_of(model))
        expected, losses = one_by_one(model, RAGGED, COHORT, batches, plain_sgd)
        for key in expected[0]:
            mean = sum(w * p[key] for w, p in zip(weights, expected, strict=True)) / weights.sum()
            assert float((found[key] - mean).abs().max()) < 1e-13
        assert total.mean_loss * total.weight == pytest.approx(weights @ losses)


@pytest.fixture
def one_thread_in_kernels():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["MLP", "CNN"])
@pytest.mark.parametrize("strategy", [*NAMES, "merged"])
def test_the_bits_do_not_depend_on_the_number_of_threads(name, strategy, one_thread_in_kernels):
    model = make(name).float()
    clients = federation([12] * 40, dtype=torch.float32)
    cohort = np.arange(40)
    batches = draw(clients, cohort, local_steps=1 if strategy == "merged" else 4, batch_size=4)
    chosen = STRATEGIES.get(strategy) or STRATEGIES[choose_strategy(model, clients.device)]
    if chosen.stack or chosen.merge:
        chosen = replace(chosen, chunk=7)
    results = [
        fl.sum_clients(
            model, fl.params_of(model), clients, cohort, batches, lr=0.1,
            strategy=replace(chosen, threads=threads),
        )
        for threads in (1, 2, 3)
    ]  # fmt: skip
    for other in results[1:]:
        assert torch.equal(results[0].loss, other.loss)
        assert all(torch.equal(p, other.params[key]) for key, p in results[0].params.items())


def test_clients_run_in_several_threads_and_the_caller_keeps_its_own_settings():
    model, before = make("MLP"), torch.get_num_threads()
    meet = threading.Barrier(2, timeout=60)  # passed only by two jobs at the same time
    batches = draw(RAGGED, COHORT[:2], local_steps=1, batch_size=2)
    run_jobs(model, COHORT[:2], batches, Strategy(threads=2), lambda places: meet.wait())
    assert torch.get_num_threads() == before


def run_jobs(model, cohort, batches, strategy, job):
    """Apply a function to the places of each job of a cohort."""
    ready = check_model(model, fl.params_of(model), RAGGED)
    plan = cohorts.plan(ready, strategy=strategy, local_steps=[len(batches[0])])
    own = cohorts._Cohort(plan, RAGGED, fl.params_of(model), cohort, batches, lr=0.1)
    return own.run(job)


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_the_size_of_a_chunk_changes_rounding_only(chunk):
    model = make("MLP")
    batches = draw(RAGGED, COHORT, local_steps=2, batch_size=4)
    run = dict(lr=0.1, strategy=Strategy(stack=True, chunk=chunk))
    trained = fl.map_clients(model, fl.params_of(model), RAGGED, COHORT, batches, **run)
    jobs = run_jobs(model, COHORT, batches, run["strategy"], list)
    assert max(map(len, jobs)) <= chunk
    assert sorted(place for job in jobs for place in job) == list(range(len(COHORT)))
    expected, _ = one_by_one(model, RAGGED, COHORT, batches, plain_sgd)
    assert far(in_order(trained)[0], expected) < 1e-13


@pytest.mark.parametrize("strategy", ["loop", "stacked"])
def test_momentum_equals_torch(strategy):
    model = make("MLP")
    batches = draw(RAGGED, COHORT, local_steps=4, batch_size=4)
    run = dict(lr=0.1, rule=fl.momentum(0.8), strategy=strategy)
    found, _ = in_order(fl.map_clients(model, fl.params_of(model), RAGGED, COHORT, batches, **run))
    expected, _ = one_by_one(
        model, RAGGED, COHORT, batches, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)
    )
    assert far(found, expected) < 1e-13


@pytest.mark.parametrize("strategy", ["loop", "stacked"])
def test_the_proximal_rule_descends_the_penalised_loss(strategy):
    model, mu = make("MLP"), 0.7
    batches = draw(RAGGED, COHORT, local_steps=4, batch_size=4)
    run = dict(lr=0.1, rule=fl.proximal(mu), strategy=strategy)
    found, _ = in_order(fl.map_clients(model, fl.params_of(model), RAGGED, COHORT, batches, **run))
    for i, rows, params in zip(COHORT, batches, found, strict=True):
        own, start = copy.deepcopy(model), fl.params_of(model)
        optimizer = plain_sgd(own.parameters())
        x, y = RAGGED[i]
        for row in rows:
            pull = sum((p - start[n]).square().sum() for n, p in own.named_parameters())
            optimizer.zero_grad()
            (nn.functional.cross_entropy(own(x[row]), y[row]) + mu / 2 * pull).backward()
            optimizer.step()
        assert far([params], [fl.params_of(own)]) < 1e-13


@pytest.mark.parametrize("strategy", ["loop", "stacked"])
def test_control_variates_correct_each_client_by_its_own_row(strategy):
    model = make("MLP")
    params, rng = fl.params_of(model), np.random.default_rng(0)
    state = {
        name: torch.as_tensor(rng.standard_normal((len(COHORT), *p.shape)))
        for name, p in params.items()
    }
    batches = draw(RAGGED, COHORT, local_steps=3, batch_size=4)
    run = dict(lr=0.1, rule=fl.control_variate, client_state=state, strategy=strategy)
    found, _ = in_order(fl.map_clients(model, params, RAGGED, COHORT, batches, **run))
    for place, (i, rows) in enumerate(zip(COHORT, batches, strict=True)):
        own = copy.deepcopy(model)
        optimizer = plain_sgd(own.parameters())
        x, y = RAGGED[i]
        for row in rows:
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x[row]), y[row]).backward()
            for name, p in own.named_parameters():
                p.grad += state[name][place]
            optimizer.step()
        assert far([found[place]], [fl.params_of(own)]) < 1e-13


def test_control_variates_need_corrections():
    model, batches = make("MLP"), draw(RAGGED, COHORT, local_steps=2, batch_size=4)
    run = dict(lr=0.1, rule=fl.control_variate)
    with pytest.raises(ValueError, match="Invalid client_state=None.*one row per client"):
        fl.map_clients(model, fl.params_of(model), RAGGED, COHORT, batches, **run)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fl.momentum(1.0), "Invalid beta=1.0: must be a finite number >= 0 and < 1"),
        (lambda: fl.proximal(-1.0), "Invalid mu=-1.0"),
        (lambda: Strategy(stack=True, merge=True), "Invalid stack=True with merge=True"),
        (lambda: Strategy(compile=True), "Invalid compile=True: only stacks"),
        (
            lambda: Strategy(stack=True, compile=True, threads=2),
            "Invalid threads=2 with compile=True",
        ),
        (lambda: Strategy(chunk=3), "Invalid chunk=3: a job is one client"),
        (lambda: Strategy(threads=0), "Invalid threads=0"),
    ],
)
def test_rules_and_strategies_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("as_readers_run_it")
def test_a_lower_precision_is_a_dtype():
    with pytest.raises(TypeError, match="Invalid autocast='bfloat16': no floating point dtype"):
        Strategy(autocast="bfloat16")


def write(params, grads, state, lr):
    return [p.sub_(lr * g) for p, g in zip(params, grads, strict=True)], state


WRITES = fl.LocalStep("writes", lambda params, extra: None, write)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rule=WRITES, strategy="loop"), "Invalid step writes: it writes into the parameters"),
        (dict(weights=np.ones(7)), "Invalid weights of 7 rows: the cohort has 6 clients"),
        (dict(client_state={"body.1.weight": torch.ones(7, 1)}), "Invalid body.1.weight of 7 rows"),
        (
            dict(client_state={"body.1.weight": torch.ones(6, 1)}),
            "Invalid client_state: body.1.bias is missing",
        ),
        (dict(trainable=["had.weight"]), "Invalid trainable: had.weight is no parameter"),
        (dict(cohort=COHORT[:0]), "Invalid batches of 6 rows: the cohort has 0 clients"),
        (dict(strategy="magic"), "Invalid strategy=.*magic"),
        (dict(strategy="merged"), "needs local_steps=1 and SGD, not 2 and sgd"),
        (dict(strategy="merged", local_steps=1, rule=fl.momentum()), "not 1 and momentum"),
    ],
)
@pytest.mark.usefixtures("as_readers_run_it")
def test_a_cohort_refuses(change, message):
    model, change = make("MLP"), dict(change)
    batches = draw(RAGGED, COHORT, local_steps=change.pop("local_steps", 2), batch_size=4)
    cohort = change.pop("cohort", COHORT)
    for train in (fl.map_clients, fl.sum_clients):
        with pytest.raises(ValueError, match=message):
            train(model, fl.params_of(model), RAGGED, cohort, batches, lr=0.1, **change)


@pytest.mark.parametrize("strategy", [*NAMES, Strategy(stack=True, chunk=2)])
@pytest.mark.parametrize("batch_size", [2, None])
def test_clients_of_one_cohort_may_take_different_numbers_of_steps(strategy, batch_size):
    model = make("MLP")
    batches = draw(RAGGED, COHORT, local_steps=4, batch_size=batch_size)
    batches = [rows[: 1 + i % 4] for i, rows in enumerate(batches)]
    args = model, fl.params_of(model), RAGGED, COHORT, batches
    params, losses = in_order(fl.map_clients(*args, lr=0.1, strategy=strategy))
    expected, expected_losses = one_by_one(model, RAGGED, COHORT, batches, plain_sgd)
    assert far(params, expected) < 1e-13
    assert np.allclose(losses, expected_losses, rtol=1e-12)


def test_a_client_takes_a_step_at_least():
    model, batches = make("MLP"), draw(RAGGED, COHORT, local_steps=2, batch_size=4)
    batches[3] = batches[3][:0]
    with pytest.raises(ValueError, match="Invalid batches"):
        fl.map_clients(model, fl.params_of(model), RAGGED, COHORT, batches, lr=0.1)


def test_no_client_is_merged_whose_own_parameters_are_asked_for():
    model, batches = make("MLP"), draw(RAGGED, COHORT, local_steps=1, batch_size=4)
    with pytest.raises(ValueError, match="merges clients, but each client's own parameters are as"):
        fl.map_clients(
            model, fl.params_of(model), RAGGED, COHORT, batches, lr=0.1, strategy="merged"
        )


def test_sums_are_taken_in_single_precision_at_least():
    """257 has no place in bfloat16: an average of equal parameters must not shrink."""
    clients = federation([257] * 4, dtype=torch.bfloat16)
    model = make("MLP").to(torch.bfloat16)
    config = fl.FedAvgConfig(
        num_rounds=1, local_steps=2, cohort_size=None, batch_size=5, client_lr=1e-9
    )
    result = fl.run_fedavg(model, clients, config, seed=0, progress=False)
    assert far([result.params], [fl.params_of(model)]) == 0


@pytest.mark.parametrize("strategy", NAMES)
def test_frozen_parameters_keep_their_bits(strategy):
    model = make("MLP").float()
    model.body.requires_grad_(False)
    clients = federation([5, 9, 3], dtype=torch.float32)
    config = fl.FedAvgConfig(
        num_rounds=3, local_steps=2, cohort_size=None, batch_size=5, client_lr=0.1
    )
    run = dict(seed=0, progress=False, strategy=strategy)
    result = fl.run_fedavg(model, clients, config, **run)
    for name, p in fl.params_of(model).items():
        assert torch.equal(result.params[name], p) == name.startswith("body")


def test_an_error_in_one_thread_ends_the_others():
    model, done = make("MLP"), []
    batches = draw(RAGGED, COHORT, local_steps=2, batch_size=4)

    def job(places):
        if 0 in places:
            raise RuntimeError("from a job")
        time.sleep(0.3)
        done.append("other")

    with pytest.raises(RuntimeError, match="from a job"):
        run_jobs(model, COHORT, batches, Strategy(threads=2), job)
    after = len(done)
    time.sleep(0.6)  # longer than what was under way
    assert len(done) == after < len(COHORT) - 1


@pytest.mark.parametrize("strategy", [*NAMES, "merged"])
def test_inputs_may_be_integers(strategy):
    """Ragged, so that batches are padded: their weights have no dtype to take from the inputs."""
    rng = np.random.default_rng(0)
    words, labels = torch.as_tensor(rng.integers(7, size=(43, 4))), RAGGED.targets
    clients = fl.ClientData(words, labels, RAGGED.sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Embedding(7, 5), nn.Flatten())
        model = fl.BodyHead(body, nn.Linear(20, 3)).double()
    batches = draw(clients, COHORT, local_steps=1, batch_size=4)
    args = (model, fl.params_of(model), clients, COHORT, batches)
    total = fl.sum_clients(*args, lr=0.1, strategy=strategy).params
    expected, _ = one_by_one(model, clients, COHORT, batches, plain_sgd)
    weights = clients.sizes[COHORT]
    for name in expected[0]:
        mean = sum(w * p[name] for w, p in zip(weights, expected, strict=True))
        assert float((total[name] - mean).abs().max()) < 1e-12


def test_recurrent_layers_run_one_client_at_a_time():
    assert choose_strategy(nn.LSTM(2, 3), torch.device("cuda")) == "threads"


def test_one_step_of_a_run_is_merged_and_several_are_not(monkeypatch):
    seen = []

    def spy(*args, **options):
        seen.append(resolve_strategy(*args, **options))
        return seen[-1]

    monkeypatch.setattr(cohorts, "resolve_strategy", spy)
    config = fl.FedAvgConfig(
        num_rounds=1, local_steps=1, cohort_size=3, batch_size=2, client_lr=0.1
    )
    for change, step in ((1, fl.sgd), (2, fl.sgd), (1, fl.momentum())):
        one = replace(config, local_steps=change)
        fl.run_fedavg(make("MLP"), RAGGED, one, seed=0, step=step, progress=False)
    assert seen == [STRATEGIES[name] for name in ("merged", "stacked", "stacked")]
    assert choose_strategy(make("CNN"), torch.device("cpu")) == "threads"
    assert choose_strategy(make("MLP"), torch.device("cpu")) == "stacked"
    wide = fl.MLP((1, 28, 28), 10, hidden=(1024,))
    assert choose_strategy(wide, torch.device("cpu")) == "threads"
    assert choose_strategy(wide, torch.device("cuda")) == "stacked"
    assert choose_strategy(make("CNN"), torch.device("cuda")) == "stacked"


def test_half_precision_is_near_and_is_off_unless_asked():
    model = make("MLP").float()
    clients = federation([9] * 4, dtype=torch.float32)
    cohort = np.arange(4)
    batches = draw(clients, cohort, local_steps=3, batch_size=4)
    run = dict(lr=0.1)
    args = (model, fl.params_of(model), clients, cohort, batches)
    full, _ = in_order(fl.map_clients(*args, strategy="stacked", **run))
    half, _ = in_order(fl.map_clients(*args, strategy=BF16, **run))
    assert half[0]["body.1.weight"].dtype == torch.float32
    assert 0 < far(half, full) < 0.02


COMPILED = """
import warnings
import numpy as np, torch
import fedlib as fl

rng = np.random.default_rng(0)
inputs = torch.as_tensor(rng.standard_normal((20, 6)))
clients = fl.ClientData(inputs, torch.as_tensor(rng.integers(3, size=20)), np.array([5, 9, 6]))
model = fl.MLP((6,), 3, hidden=(4,)).double()
warnings.simplefilter("error", RuntimeWarning)  # the one that says that compiling failed
cases = [  # full batches: ten, ten and three steps
    (batch_size, steps, rule, part)
    for batch_size, steps in ((4, 3), (None, 23))
    for rule, part in ((fl.sgd, ""), (fl.momentum(), ""), (fl.proximal(0.1), "body"))
]
for batch_size, steps, step, part in cases:
    draw = dict(local_steps=steps, batch_size=batch_size, rng=rng)
    batches = [fl.draw_batches(int(size), **draw) for size in clients.sizes]
    args = (model, fl.params_of(model), clients, np.arange(3), batches)
    names = [name for name in args[1] if name.startswith(part)]
    found, expected = (
        fl.map_clients(*args, lr=0.1, rule=step, trainable=names, strategy=name)
        for name in ("compiled", "stacked")
    )
    for name, p in expected.params.items():
        assert torch.allclose(found.params[name], p, rtol=0, atol=1e-12)
        assert torch.equal(p[0], args[1][name]) == (name not in names)
    assert torch.allclose(found.losses, expected.losses, rtol=1e-12)

from torch._dynamo.utils import counters

graphs = counters["stats"]["unique_graphs"]
for lr in (0.2, 0.3, 0.4):  # another step size is no other function
    fl.map_clients(*args, lr=lr, rule=step, trainable=names, strategy="compiled")
assert graphs == counters["stats"]["unique_graphs"] > 0

# Every rule, and every model, has graphs of its own: here one, and no second.
draw = dict(local_steps=2, batch_size=4, rng=rng)
batches = [fl.draw_batches(int(size), **draw) for size in clients.sizes]
with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
    for width in (5, 6):
        wider = fl.MLP((6,), 3, hidden=(width,)).double()
        for step in (fl.sgd, fl.momentum(0.5)):
            args = (wider, fl.params_of(wider), clients, np.arange(3), batches)
            fl.map_clients(*args, lr=0.1, rule=step, strategy="compiled")
assert counters["stats"]["unique_graphs"] == graphs + 4
print("equal")
"""

IGNORED = """
import warnings
import numpy as np, torch
import fedlib as fl


class Sign(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad  # as if it were the identity


class Signs(torch.nn.Module):
    def forward(self, x):
        return Sign.apply(x)


rng = np.random.default_rng(0)
inputs = torch.as_tensor(rng.standard_normal((20, 6)))
clients = fl.ClientData(inputs, torch.as_tensor(rng.integers(3, size=20)), np.array([5, 9, 6]))
draw = dict(local_steps=3, batch_size=4, rng=rng)


def check(layer, width):
    body = torch.nn.Sequential(torch.nn.Linear(6, width), layer)
    model = fl.BodyHead(body, torch.nn.Linear(width, 3)).double()
    batches = [fl.draw_batches(int(n), **draw) for n in clients.sizes]
    args = (model, fl.params_of(model), clients, np.arange(3), batches)
    expected = fl.map_clients(*args, lr=0.1, strategy="stacked")
    for call in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            found = fl.map_clients(*args, lr=0.1, strategy="compiled")
        said = [str(w.message) for w in caught if w.category is RuntimeWarning]
        print(*said or ["silent"])
        for name, p in expected.params.items():
            assert torch.allclose(found.params[name], p, rtol=0, atol=1e-13)


check(Signs(), 4)
check(Signs(), 1024)  # the body's gradient is a small part of the whole


class Signs(torch.nn.Module):  # defined anew, with the same name
    def forward(self, x):
        return x.sign()


check(Signs(), 4)
"""


def in_a_process(script):
    """The shape checks of this one cannot be compiled."""
    run = [sys.executable, "-c", script]
    return subprocess.run(run, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_compiled_step_equals_the_stacked_one():
    done = in_a_process(COMPILED)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_compiled_steps_that_are_wrong_are_not_used():
    done = in_a_process(IGNORED)
    small, again, wide, once_more, *right = done.stdout.splitlines()
    for said in (small, wide):
        assert re.match(r"torch.compile gave .* \d+% off: .* uncompiled.*autograd.Function", said)
    assert [again, once_more, *right] == ["silent"] * 4


def test_what_counts_as_another_update():
    start = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    right = {"weight": start["weight"] - 0.1, "bias": start["bias"] - 1.0}

    def off(**change):
        return compiled._error(right | change, right, start)

    assert off() == compiled._error(start, start, start) == 0
    assert off(weight=right["weight"] * (1 + 1e-6)) < 1e-4  # rounding
    astray = right["weight"].clone()
    astray[0] = 7.0
    assert off(weight=astray) == 0  # one client of three, across a kink
    assert off(weight=start["weight"]) > 0.5  # a leaf that does not move, beside a larger one
    assert not off(weight=right["weight"] * torch.nan) <= compiled._TOLERANCE


def test_a_step_that_does_not_compile_runs_uncompiled_and_says_so(monkeypatch):
    def fails(*args):
        raise RuntimeError("no compiler here\nsays the linker\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    monkeypatch.setattr(compiled, "_steps_of", lambda *kind: steps)
    steps = compiled._Steps("sgd")
    model = make("MLP")
    batches = draw(RAGGED, COHORT, local_steps=3, batch_size=2)
    args = (model, fl.params_of(model), RAGGED, COHORT, batches)
    expected, _ = in_order(fl.map_clients(*args, lr=0.1, strategy="stacked"))
    said = r"compile failed \(no compiler here says the linker\): .*uncompiled"
    with pytest.warns(RuntimeWarning, match=said):
        found, _ = in_order(fl.map_clients(*args, lr=0.1, strategy="compiled"))
    assert far(found, expected) == 0
    again, _ = in_order(fl.map_clients(*args, lr=0.1, strategy="compiled"))  # said once
    assert far(again, expected) == 0


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_stacked_call_is_one_call_per_client(data):
    """Random chains of layers, on random numbers of clients and examples."""
    draw_int = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    k, b, width = draw_int(1, 4), draw_int(1, 5), draw_int(1, 6)
    layers, d = [nn.Flatten()], 2 * width
    for _ in range(draw_int(1, 4)):
        kind = data.draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Linear, nn.LayerNorm, nn.Softmax]))
        if kind is nn.Linear:
            out = draw_int(1, 6)
            layers.append(nn.Linear(d, out, bias=data.draw(st.booleans())))
            d = out
        else:
            layers.append(
                {nn.LayerNorm: nn.LayerNorm(d), nn.Softmax: nn.Softmax(-1)}.get(kind) or kind()
            )
    model = nn.Sequential(*layers).double()
    rng = np.random.default_rng(draw_int(0, 99))
    params = {
        name: torch.as_tensor(rng.standard_normal((k, *p.shape)))
        for name, p in model.named_parameters()
    }
    x = torch.as_tensor(rng.standard_normal((k, b, 2, width)))
    found = stacked_call(model, params, x)
    for i in range(k):
        own = functional_call(model, {name: p[i] for name, p in params.items()}, (x[i],))
        assert torch.allclose(found[i], own, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_takes_more_than_one_axis_of_examples():
    layer = nn.Linear(3, 2).double()
    params = {
        name: torch.randn(4, *p.shape, dtype=torch.float64, generator=torch.Generator())
        for name, p in layer.named_parameters()
    }
    x = torch.arange(4 * 5 * 2 * 3.0, dtype=torch.float64).view(4, 5, 2, 3)
    own = [functional_call(layer, {n: p[i] for n, p in params.items()}, (x[i],)) for i in range(4)]
    assert torch.allclose(stacked_call(layer, params, x), torch.stack(own))
