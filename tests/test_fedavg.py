"""The loop, against oracles: plain torch.optim.SGD, closed forms, and its own promises."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedlib as fl

CONFIG = fl.FedAvgConfig(
    num_rounds=4, local_steps=3, cohort_size=3, batch_size=4, client_lr=0.1, server_lr=0.7
)


def federation(sizes=(5, 9, 3, 12), *, classes=3, shape=(1, 4, 4), seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    inputs = torch.as_tensor(rng.standard_normal((n, *shape)), dtype=dtype)
    return fl.ClientData(inputs, torch.as_tensor(rng.integers(classes, size=n)), np.array(sizes))


def with_backward_hook():
    model = fl.MLP((1, 4, 4), 3).double()
    model.head.register_full_backward_pre_hook(lambda module, grads: None)
    return model


def plain_fedavg(model, clients, config, seed):
    """FedAvg as one would first write it: deepcopy, torch.optim.SGD, a dict of averages."""
    server = copy.deepcopy(model)
    for t in range(config.num_rounds):
        rng = np.random.default_rng([seed, t])
        cohort = range(len(clients))
        if config.cohort_size and config.cohort_size < len(clients):
            cohort = rng.choice(len(clients), config.cohort_size, replace=False)
        batches = [
            fl.draw_batches(
                int(clients.sizes[i]),
                local_steps=config.local_steps,
                batch_size=config.batch_size,
                rng=rng,
            )
            for i in cohort
        ]
        states, weights = [], []
        for i, rows in zip(cohort, batches, strict=True):
            client = copy.deepcopy(server)
            optimizer = torch.optim.SGD(client.parameters(), lr=config.client_lr)
            x, y = clients[i]
            for batch in rows:
                outputs = client(x[batch])
                if y.is_floating_point():
                    loss = nn.functional.mse_loss(outputs, y[batch]) / 2
                else:
                    loss = nn.functional.cross_entropy(outputs, y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            states.append(client.state_dict())
            weights.append(int(clients.sizes[i]))
        for name, p in server.state_dict().items():
            average = sum(w * s[name] for w, s in zip(weights, states, strict=True)) / sum(weights)
            p.copy_(p + config.server_lr * (average - p))
    return fl.params_of(server)


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("cohort_size", [3, None])
@pytest.mark.parametrize("make", [fl.CNN, fl.MLP])
def test_equals_a_plain_loop_over_torch_sgd(make, cohort_size, local_steps):
    clients = federation()  # ragged: one client is smaller than a batch
    model = make((1, 4, 4), 3).double()
    config = replace(CONFIG, cohort_size=cohort_size, local_steps=local_steps)
    result = fl.run_fedavg(model, clients, config, seed=5, progress=False)
    assert distance(result.params, plain_fedavg(model, clients, config, 5)) < 1e-13


def test_equals_a_plain_loop_in_float32():
    clients = federation(dtype=torch.float32)
    model = fl.CNN((1, 4, 4), 3)
    result = fl.run_fedavg(model, clients, CONFIG, seed=5, progress=False)
    assert distance(result.params, plain_fedavg(model, clients, CONFIG, 5)) < 1e-6


def test_equals_a_plain_loop_for_real_targets():
    rng = np.random.default_rng(3)
    inputs, targets = torch.as_tensor(rng.standard_normal((8, 5))), torch.as_tensor(rng.random(8))
    clients = fl.ClientData(inputs, targets, np.array([3, 5]))
    model = fl.LinearNet(5, 2).double()
    config = replace(CONFIG, cohort_size=None, batch_size=2)
    result = fl.run_fedavg(model, clients, config, seed=1, progress=False)
    assert distance(result.params, plain_fedavg(model, clients, config, 1)) < 1e-13


def test_one_client_taking_part_is_sgd_on_it():
    clients = federation((7,))
    model = fl.MLP((1, 4, 4), 3).double()
    config = replace(CONFIG, cohort_size=None, batch_size=None, server_lr=1.0, num_rounds=2)
    twice = fl.run_fedavg(model, clients, config, seed=0, progress=False)
    once = replace(config, num_rounds=1, local_steps=2 * config.local_steps)
    assert distance(twice.params, fl.run_fedavg(model, clients, once, seed=0).params) < 1e-14


def test_one_full_batch_step_is_gradient_descent_on_the_average_loss():
    """With τ = 1 and full batches, D-SGD is gradient descent on the pooled data."""
    clients = federation((5, 9, 3))
    model = fl.MLP((1, 4, 4), 3).double()
    config = replace(CONFIG, cohort_size=None, batch_size=None, local_steps=1, server_lr=1.0)
    pooled = fl.ClientData(clients.inputs, clients.targets, np.array([17]))
    a, b = (fl.run_fedavg(model, c, config, seed=0, progress=False) for c in (clients, pooled))
    assert distance(a.params, b.params) < 1e-14
    np.testing.assert_allclose(a.history.loss, b.history.loss)


def test_negative_control_two_local_steps_are_not_gradient_descent_on_the_average_loss():
    clients = federation((5, 9, 3))
    model = fl.MLP((1, 4, 4), 3).double()
    config = replace(CONFIG, cohort_size=None, batch_size=None, local_steps=2, server_lr=1.0)
    pooled = fl.ClientData(clients.inputs, clients.targets, np.array([17]))
    a, b = (fl.run_fedavg(model, c, config, seed=0, progress=False) for c in (clients, pooled))
    assert distance(a.params, b.params) > 1e-5


def test_same_seed_same_result_and_another_seed_another():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    runs = [fl.run_fedavg(model, clients, CONFIG, seed=s, progress=False) for s in (1, 1, 2)]
    assert distance(runs[0].params, runs[1].params) == 0
    assert distance(runs[0].params, runs[2].params) > 1e-6


def test_global_generators_are_neither_used_nor_moved():
    clients, before = federation(), torch.random.get_rng_state()
    state = np.random.get_state()[1].copy()
    model = fl.MLP((1, 4, 4), 3, seed=3).double()
    fl.run_fedavg(model, clients, CONFIG, seed=0, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])


def test_the_model_is_left_as_it_was():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    before = fl.params_of(model)
    params = fl.run_fedavg(model, clients, CONFIG, seed=0, progress=False).params
    fl.fine_tune(model, params, clients, steps=2, lr=0.1, batch_size=4, seed=0)
    assert distance(before, fl.params_of(model)) == 0


def test_history_holds_one_entry_per_evaluated_round():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()

    def metrics(params):
        return {"accuracy": fl.evaluate(model, params, clients).mean(), "norm": 1.0}

    config = replace(CONFIG, num_rounds=5)
    result = fl.run_fedavg(
        model, clients, config, seed=0, metrics=metrics, eval_every=2, progress=False
    )
    assert result.history.round_num.tolist() == [2, 4, 5]
    assert len(result.history) == len(result.history.loss) == len(result.history["accuracy"])
    assert result.history["accuracy"][-1] == metrics(result.params)["accuracy"]


def test_progress_bar_counts_rounds(capsys):
    fl.run_fedavg(fl.MLP((1, 4, 4), 3).double(), federation(), CONFIG, seed=0)
    assert "4/4" in capsys.readouterr().err


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(num_rounds=0), ValueError, "Invalid num_rounds=0"),
        (dict(batch_size=0), ValueError, "Invalid batch_size=0"),
        (dict(cohort_size=-1), ValueError, "Invalid cohort_size=-1"),
        (dict(client_lr=0.0), ValueError, "Invalid client_lr=0.0"),
        (dict(client_lr=float("nan")), ValueError, "Invalid client_lr=nan"),
        (dict(client_lr=float("inf")), ValueError, "Invalid client_lr=inf: .* Use a number > 0"),
        (dict(client_lr="0.1"), TypeError, "Invalid client_lr='0.1': not a number"),
        (dict(client_lr=None), TypeError, "Invalid client_lr=None: not a number"),
        (dict(client_lr=True), TypeError, "Invalid client_lr=True: not a number"),
        (dict(client_lr=torch.tensor(0.1)), TypeError, r"Invalid client_lr=tensor\(0.1000\): not"),
        (dict(server_lr=-1.0), ValueError, "Invalid server_lr=-1.0"),
        (dict(num_rounds=2.0), TypeError, "Invalid num_rounds=2.0: not an integer"),
        (dict(num_rounds=None), TypeError, "Invalid num_rounds=None: not an integer"),
        (dict(local_steps="2"), TypeError, "Invalid local_steps='2': not an integer"),
        (dict(cohort_size=0.1), TypeError, "Invalid cohort_size=0.1: not an integer"),
    ],
)
def test_config_refuses(change, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config=replace(CONFIG, cohort_size=5)), "Invalid cohort_size=5: .* 4 clients"),
        (dict(strategy="magic"), "Invalid strategy"),
        (dict(seed=-1), "Invalid seed=-1"),
        (dict(eval_every=0), "Invalid eval_every=0"),
        (dict(model=fl.MLP((1, 4, 4), 2).double()), "labels reach 2.*at least 3 outputs"),
        (dict(model=fl.MLP((1, 5, 5), 3).double()), r"cannot take inputs of shape \(2, 1, 4, 4\)"),
        (dict(model=fl.MLP((1, 4, 4), 3)), "to one dtype and device"),
        (dict(model=with_backward_hook()), "backward hooks.*Remove them"),
        (
            dict(model=nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)).double()),
            "a global generator.*Leave out dropout",
        ),
        (
            dict(
                model=nn.Sequential(
                    nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 3)
                ).double()
            ),
            "depends on the others of its batch.*Use GroupNorm",
        ),
        (
            dict(model=nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).double()),
            "changes its buffer 0.running_mean.*Use GroupNorm",
        ),
    ],
)
def test_a_run_is_refused_before_its_first_round(tmp_path, monkeypatch, change, message):
    refused_before_work(tmp_path, monkeypatch, ValueError, message, change)


def refused_before_work(tmp_path, monkeypatch, error, message, change):
    def no_work(*args, **kwargs):
        raise AssertionError("a round was run")

    monkeypatch.setattr("fedlib.cohort.Plan.sum", no_work)
    run = dict(model=fl.MLP((1, 4, 4), 3).double(), clients=federation(), config=CONFIG, seed=0)
    run |= dict(checkpoint=tmp_path / "run")
    with pytest.raises(error, match=message):
        fl.run_fedavg(**(run | change), progress=False)
    assert not list(tmp_path.iterdir())


def broken_mlp():
    model = fl.MLP((1, 4, 4), 3).double()
    nn.init.constant_(model.head.bias, torch.nan)
    return model


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(model=lambda x: x), TypeError, "Invalid model of type function: .*torch.nn.Module"),
        (dict(model=fl.MLP), TypeError, "Invalid model of type type: not a Module"),
        (dict(clients=[]), TypeError, "Invalid clients of type list: .* Use ClientData.from_parts"),
        (dict(clients=federation()[0]), TypeError, "Invalid clients of type tuple"),
        (dict(config={}), TypeError, "Invalid config of type dict: .* Use FedAvgConfig"),
        (dict(metrics={"a": 1}), TypeError, "Invalid metrics of type dict: not callable.*function"),
        (dict(seed=None), TypeError, "Invalid seed=None: not an integer. Use seed=0 or more"),
        (dict(seed=0.5), TypeError, "Invalid seed=0.5: not an integer"),
        (dict(eval_every="all"), TypeError, "Invalid eval_every='all': not an integer"),
        (dict(model=broken_mlp()), ValueError, "Invalid params: head.bias holds NaN.*finite"),
        (
            dict(model=fl.MLP((1, 4, 4), 3).double().to("meta")),
            ValueError,
            "cannot take inputs .* on cpu .*device meta.* to one dtype and device",
        ),
        (
            dict(clients=federation(dtype=torch.float16)),
            ValueError,
            "cannot take inputs .* dtype torch.float16.* to one dtype and device",
        ),
        (
            dict(
                model=fl.LinearNet(2, 1),
                clients=fl.ClientData(torch.ones(3, 2), torch.ones(3).double(), np.array([1, 2])),
                config=replace(CONFIG, cohort_size=None),
            ),
            ValueError,
            "targets of type torch.float64: the model's outputs are torch.float32. .* one dtype",
        ),
        (
            dict(model=fl.MLP((1, 4, 4), 3).double().requires_grad_(False)),
            ValueError,
            r"no parameter is trainable. Use requires_grad_\(True\)",
        ),
    ],
)
def test_a_run_without_the_right_things_is_refused_before_its_first_round(
    tmp_path, monkeypatch, as_readers_run_it, change, error, message
):
    refused_before_work(tmp_path, monkeypatch, error, message, change)


def test_real_targets_need_one_output_per_example():
    clients = fl.ClientData(torch.ones(4, 2), torch.ones(4), np.array([4]))
    with pytest.raises(ValueError, match="one number per example"):
        fl.run_fedavg(nn.Linear(2, 1), clients, replace(CONFIG, cohort_size=None), seed=0)


def test_divergence_names_the_round_and_the_step_size():
    clients = fl.ClientData(1e3 * torch.ones(4, 2), torch.ones(4), np.array([4]))
    config = replace(CONFIG, cohort_size=None, client_lr=10.0, num_rounds=200)
    model = fl.LinearNet(2, 1)
    nn.init.ones_(model.head.weight)
    with pytest.raises(FloatingPointError, match=r"round \d+ on client 0: .* smaller than 10.0"):
        fl.run_fedavg(model, clients, config, seed=0, progress=False)


@pytest.mark.parametrize("strategy", ["auto", "loop", "stacked", "threads"])
@pytest.mark.parametrize("train", [fl.run_fedavg, fl.run_scaffold, fl.run_fedrep])
def test_divergence_names_the_clients(train, strategy):
    """Of four clients two hold inputs that are far too large; the others stay finite."""
    scale = torch.tensor([1e-3, 1e30, 1e-3, 1e30]).repeat_interleave(2)[:, None]
    clients = fl.ClientData(scale * torch.ones(8, 2), torch.ones(8), np.array([2, 2, 2, 2]))
    config = replace(CONFIG, cohort_size=None, batch_size=None, client_lr=0.1, num_rounds=9)
    how = dict(seed=0, progress=False, strategy=strategy)
    model = fl.LinearNet(2, 1)
    how |= {"head_steps": 1} if train is fl.run_fedrep else {}
    with pytest.raises(FloatingPointError, match=r"in round \d+ on client 1 and 1 more: .* 0.1"):
        train(model, clients, config, **how)


def test_a_refused_model_is_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten()).double()
    before, generator = model[0].running_mean.clone(), torch.random.get_rng_state()
    with pytest.raises(ValueError, match="Invalid model"):
        fl.run_fedavg(model, federation(), CONFIG, seed=0)
    assert torch.equal(model[0].running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_batch_normalisation_in_evaluation_mode_is_a_pure_function():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    result = fl.run_fedavg(model, federation(), CONFIG, seed=0, progress=False)
    oracle = plain_fedavg(model, federation(), CONFIG, 0)
    assert distance(result.params, oracle) < 1e-13


def test_frozen_and_unused_parameters_stay():
    model = fl.MLP((1, 4, 4), 3).double()
    model.body[1].bias.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(2))
    result = fl.run_fedavg(model, federation(), CONFIG, seed=0, progress=False)
    start = fl.params_of(model)
    assert torch.equal(result.params["body.1.bias"], start["body.1.bias"])
    # What could move, but has no gradient, is averaged: up to rounding it stays.
    torch.testing.assert_close(result.params["unused"], start["unused"], rtol=0, atol=1e-15)
    assert not torch.equal(result.params["head.bias"], model.head.bias)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        fl.run_fedavg(model, federation(), CONFIG, seed=0)


def test_params_of_another_model_are_refused():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    typo = {"head.weigth": torch.ones(1)}
    with pytest.raises(ValueError, match="Invalid params: .* missing, unknown or of another shape"):
        fl.evaluate(model, typo, clients)
    other = fl.params_of(fl.MLP((1, 4, 4), 3, hidden=(5,)).double())
    with pytest.raises(ValueError, match="Invalid params: body.1.weight"):
        fl.fine_tune(model, other, clients, steps=1, lr=0.1, batch_size=1, seed=0)


def test_a_round_refuses_a_cohort_larger_than_the_federation():
    model, config = fl.MLP((1, 4, 4), 3).double(), replace(CONFIG, cohort_size=9)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="Invalid cohort_size=9"):
        fl.run_round(model, fl.params_of(model), federation(), config, rng=rng)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(rng=0), TypeError, r"Invalid rng=0: .* Use rng=np.random.default_rng\(0\)"),
        (dict(strategy="magic"), ValueError, "Invalid strategy='magic': not an option"),
        (
            dict(params=dict(fl.MLP((1, 4, 4), 3).double().named_parameters())),
            ValueError,
            r"Invalid params: body.1.weight requires gradients. .* detach\(\)",
        ),
        (
            dict(params=fl.params_of(fl.MLP((1, 4, 4), 9).double())),
            ValueError,
            "Invalid params: head.weight, head.bias missing, unknown or of another shape",
        ),
    ],
)
def test_a_round_refuses(as_readers_run_it, change, error, message):
    model = fl.MLP((1, 4, 4), 3).double()
    round_ = dict(params=fl.params_of(model), rng=np.random.default_rng(0)) | change
    with pytest.raises(error, match=message):
        fl.run_round(model, clients=federation(), config=CONFIG, **round_)


def test_metrics_keep_their_names():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    names = iter("aab")
    with pytest.raises(ValueError, match=r"Invalid metrics: \['b'\] now, \['a'\] before"):
        fl.run_fedavg(
            model, clients, CONFIG, seed=0, metrics=lambda p: {next(names): 1.0}, progress=False
        )


@pytest.mark.parametrize(
    "returned", [{"a": 10**400}, 0.5, None, {"a": np.ones(3)}, {"a": "b"}, {0: 1.0}]
)
def test_metrics_are_numbers_by_name(as_readers_run_it, returned):
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    with pytest.raises(TypeError, match="Invalid metrics: they returned .* a dict of numbers by n"):
        fl.run_fedavg(model, clients, CONFIG, seed=0, metrics=lambda p: returned, progress=False)


def test_weights_of_an_average_are_checked():
    params = [{"w": torch.ones(1)}] * 2
    for weights in ([1], [0, 0], [2, -1]):
        with pytest.raises(ValueError, match="Invalid weights"):
            fl.weighted_average(params, np.array(weights))


# --- Batches ----------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_batches_visit_examples_evenly(size, local_steps, batch_size, seed):
    rng = np.random.default_rng(seed)
    rows = fl.draw_batches(size, local_steps=local_steps, batch_size=batch_size, rng=rng)
    b = min(size, batch_size)
    assert rows.shape == (local_steps, b)
    assert all(len(set(row)) == b for row in rows.tolist())
    per_epoch = size // b
    for start in range(0, local_steps, per_epoch):  # within an epoch nothing comes twice
        epoch = rows[start : start + per_epoch].ravel()
        assert len(set(epoch.tolist())) == len(epoch)
    assert 0 <= rows.min() <= rows.max() < size


def test_every_client_is_drawn_equally_often():
    """The cohorts that run_fedavg draws are uniform: counts within five standard deviations."""
    clients = federation((1,) * 10)
    seen = np.zeros(10)
    rounds, m = 2000, 3
    for t in range(rounds):
        cohort = np.random.default_rng([7, t]).choice(len(clients), m, replace=False)
        seen[cohort] += 1
    p = m / 10
    assert np.abs(seen - rounds * p).max() < 5 * np.sqrt(rounds * p * (1 - p))
