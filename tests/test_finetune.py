"""Fine-tuning and evaluation, against closed forms and plain torch."""

import copy
import io

import numpy as np
import pytest
import torch
from scipy import stats
from test_fedavg import distance, federation
from torch import nn

import fedlib as fl


@pytest.mark.parametrize("part", ["all", "head", "body"])
def test_equals_a_plain_loop_over_torch_sgd(part):
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    start = fl.params_of(model)
    personal = fl.fine_tune(model, start, clients, steps=7, lr=0.3, batch_size=4, part=part, seed=2)
    for i in range(len(clients)):
        oracle = fl.MLP((1, 4, 4), 3).double()
        moving = oracle.parameters() if part == "all" else getattr(oracle, part).parameters()
        optimizer = torch.optim.SGD(moving, lr=0.3)
        x, y = clients[i]
        rng = np.random.default_rng([2, i])
        for rows in fl.draw_batches(len(x), local_steps=7, batch_size=4, rng=rng):
            optimizer.zero_grad()
            nn.functional.cross_entropy(oracle(x[rows]), y[rows]).backward()
            optimizer.step()
        assert distance(personal[i], fl.params_of(oracle)) < 1e-13
    still = {"head": "body.", "body": "head.", "all": "-"}[part]
    for name in [name for name in start if name.startswith(still)]:
        assert torch.equal(personal[0][name], start[name])


def test_heads_on_stored_features_equal_heads_behind_a_running_body():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    calls = []
    model.body[0].register_forward_hook(lambda *_: calls.append(1))
    how = dict(steps=7, lr=0.3, batch_size=4, part="head", seed=2)
    stored = fl.fine_tune(model, fl.params_of(model), clients, **how)
    few = len(calls)
    model.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    doubled = fl.fine_tune(model, fl.params_of(model), clients, **how)
    assert len(calls) - few > few  # a hook may do anything: the body runs at every step

    class Doubled(fl.MLP):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    again = fl.fine_tune(Doubled((1, 4, 4), 3).double(), fl.params_of(model), clients, **how)
    for i in range(len(clients)):
        assert distance(doubled[i], again[i]) < 1e-13
        assert distance(doubled[i], stored[i]) > 1e-3


HEADS = {
    "rows are no vectors": lambda: fl.BodyHead(
        nn.Sequential(nn.Flatten(2), nn.Linear(16, 6)),
        nn.Sequential(nn.Softmax(-1), nn.Flatten(), nn.Linear(6, 3)),
    ),
    "rows are images": lambda: fl.BodyHead(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    ),
    "in-place head": lambda: fl.BodyHead(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 6)),
        nn.Sequential(nn.SiLU(inplace=True), nn.Linear(6, 3)),
    ),
    "in-place body": lambda: fl.BodyHead(
        nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), nn.Linear(16, 3)
    ),
    "the body's mode counts": lambda: fl.BodyHead(Moody(), nn.Linear(16, 3)),
    "head without clients' axis": lambda: fl.BodyHead(nn.Flatten(), Branching()),
}


class Moody(nn.Module):
    def forward(self, x):
        return x.flatten(1) * (3 if self.training else 1)


class Branching(nn.Linear):
    def __init__(self):
        super().__init__(16, 3)

    def forward(self, x):
        return super().forward(x if (x > 99).any() else x.relu())


@pytest.mark.filterwarnings("ignore:Clients are not stacked:RuntimeWarning")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("batch_size", [4, None])
def test_heads_see_what_the_model_gives_them(name, batch_size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, clients = HEADS[name]().double(), federation()
    images = clients.inputs.clone()
    start = fl.params_of(model)
    tune = dict(steps=9, lr=0.3, batch_size=batch_size, part="head", seed=2)
    personal = fl.fine_tune(model, start, clients, **tune)
    for i, own in enumerate(personal):
        oracle = copy.deepcopy(model)
        optimizer = torch.optim.SGD(oracle.head.parameters(), lr=0.3)
        x, y = clients[i]
        rng = np.random.default_rng([2, i])
        for rows in fl.draw_batches(len(x), local_steps=9, batch_size=batch_size, rng=rng):
            optimizer.zero_grad()
            nn.functional.cross_entropy(oracle(x[rows]), y[rows]).backward()
            optimizer.step()
        assert distance(own, fl.params_of(oracle)) < 1e-13
    assert torch.equal(clients.inputs, images)


@pytest.mark.parametrize("part", ["all", "head", "body"])
def test_what_is_frozen_stays(part):
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    model.body[1].bias.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    model.head.order = nn.Parameter(torch.arange(3), requires_grad=False)
    start = fl.params_of(model)
    tune = dict(steps=2, lr=0.1, batch_size=4, part=part, seed=0)
    for own in fl.fine_tune(model, start, clients, **tune):
        for name, p in own.items():
            moves = name.endswith("weight") and (part == "all" or name.startswith(part))
            assert torch.equal(p, start[name]) != moves, name
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="none of its parameters is trainable. Use requires_grad"):
        fl.fine_tune(model, start, clients, **tune)


@pytest.mark.parametrize("part", ["all", "head"])
def test_a_clients_parameters_are_saved_without_the_others(part):
    clients, model = federation((5,) * 40), fl.MLP((1, 4, 4), 3).double()
    tune = dict(steps=1, lr=0.1, batch_size=4, part=part, seed=0)
    own = fl.fine_tune(model, fl.params_of(model), clients, **tune)[0]
    file = io.BytesIO()
    torch.save(own, file)
    assert len(file.getvalue()) < 2 * sum(p.nbytes for p in own.values()) + 4000


@pytest.mark.parametrize("strategy", ["merged", fl.Strategy(merge=True)])
@pytest.mark.parametrize("part", ["all", "head"])
def test_fine_tuned_clients_are_not_merged(strategy, part):
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    tune = dict(steps=1, lr=0.1, batch_size=4, part=part, seed=0, strategy=strategy)
    with pytest.raises(ValueError, match="merges clients, but fine-tuned clients stay apart"):
        fl.fine_tune(model, fl.params_of(model), clients, **tune)


def test_a_parameter_of_body_and_head_is_no_part():
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 16))
    model = fl.BodyHead(body, nn.Linear(16, 16)).double()
    model.head.weight = body[1].weight
    start, clients = fl.params_of(model), federation()
    tune = dict(steps=1, lr=0.1, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="head.weight is a parameter of the body and of the head"):
        fl.fine_tune(model, start, clients, part="head", **tune)
    moved = fl.fine_tune(model, start, clients, **tune)[0]
    assert moved.keys() == start.keys() == {"body.1.weight", "body.1.bias", "head.bias"}


def test_a_clients_result_does_not_depend_on_the_others():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    tune = dict(steps=3, lr=0.1, batch_size=2, seed=0)
    all_of_them = fl.fine_tune(model, fl.params_of(model), clients, **tune)
    first = fl.fine_tune(model, fl.params_of(model), clients.select([0]), **tune)
    assert distance(all_of_them[0], first[0]) == 0


def test_head_fine_tuning_of_a_linear_net_reaches_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 6)), rng.standard_normal(30)
    clients = fl.ClientData(torch.as_tensor(x), torch.as_tensor(y), np.array([30]))
    model = fl.LinearNet(6, 2).double()
    start = fl.params_of(model)
    personal = fl.fine_tune(
        model, start, clients, steps=2000, lr=0.5, batch_size=None, part="head", seed=0
    )
    features = x @ start["body.weight"].numpy().T
    expected = np.linalg.lstsq(features, y, rcond=None)[0]
    np.testing.assert_allclose(personal[0]["head.weight"].numpy()[0], expected, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(steps=0), ValueError, "Invalid steps=0"),
        (dict(lr=-1.0), ValueError, "Invalid lr=-1.0"),
        (dict(batch_size=0), ValueError, "Invalid batch_size=0"),
        (dict(part="tail"), ValueError, "Invalid part"),
        (dict(seed=-1), ValueError, "Invalid seed=-1"),
        (dict(lr=1e38, steps=9), FloatingPointError, "diverged on client 0. Use an lr smaller"),
    ],
)
def test_fine_tune_refuses(change, error, message):
    model = fl.MLP((1, 4, 4), 3).double()
    arguments = dict(steps=3, lr=0.1, batch_size=2, seed=0) | change
    with pytest.raises(error, match=message):
        fl.fine_tune(model, fl.params_of(model), federation(), **arguments)


BROKEN = {"head.bias": torch.full((3,), torch.nan, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(params=3), (TypeError, ValueError), "Invalid params"),
        (
            dict(params=BROKEN),
            ValueError,
            "Invalid params: head.bias holds NaN or inf.* smaller st",
        ),
        (dict(params="attached"), ValueError, "Invalid params: body.1.weight requires gradients"),
        (dict(clients=[]), TypeError, "Invalid clients of type list"),
        (dict(model=len), TypeError, "Invalid model of type builtin_function_or_method"),
    ],
)
@pytest.mark.parametrize("call", [fl.evaluate, fl.fine_tune])
def test_what_is_not_a_model_its_parameters_or_clients_is_refused(
    as_readers_run_it, call, change, error, message
):
    model = fl.MLP((1, 4, 4), 3).double()
    given = dict(model=model, params=fl.params_of(model), clients=federation())
    if change.get("params") is BROKEN:
        change = dict(params=given["params"] | BROKEN)
    elif change.get("params") == "attached":
        change = dict(params=dict(model.named_parameters()))
    tune = dict(steps=1, lr=0.1, batch_size=None, seed=0) if call is fl.fine_tune else {}
    with pytest.raises(error, match=message):
        call(**(given | change), **tune)


def test_a_part_that_the_model_lacks_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    with pytest.raises(ValueError, match='no parameter named "head'):
        fl.fine_tune(
            model,
            fl.params_of(model),
            federation(),
            steps=1,
            lr=1.0,
            batch_size=1,
            part="head",
            seed=0,
        )


def test_evaluate_counts_by_hand():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    params = fl.params_of(model)
    for chunk in (4, 1000):
        accuracy = fl.evaluate(model, params, clients, chunk=chunk)
        loss = fl.evaluate(model, params, clients, metric="loss", chunk=chunk)
        for i in range(len(clients)):
            x, y = clients[i]
            assert accuracy[i] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
            assert loss[i] == pytest.approx(nn.functional.cross_entropy(model(x), y).item())
    personal = [params] * len(clients)
    np.testing.assert_allclose(fl.evaluate(model, personal, clients), accuracy)


def test_evaluate_refuses():
    clients, model = federation(), fl.MLP((1, 4, 4), 3).double()
    with pytest.raises(ValueError, match="not one dict for each of 4 clients"):
        fl.evaluate(model, [fl.params_of(model)], clients)
    with pytest.raises(ValueError, match="Invalid metric"):
        fl.evaluate(model, fl.params_of(model), clients, metric="beauty")
    with pytest.raises(ValueError, match="Invalid chunk=0"):
        fl.evaluate(model, fl.params_of(model), clients, chunk=0)
    real = fl.ClientData(torch.ones(2, 3), torch.ones(2), np.array([2]))
    with pytest.raises(ValueError, match='Use metric="loss"'):
        fl.evaluate(fl.LinearNet(3, 1), fl.params_of(fl.LinearNet(3, 1)), real)


def test_interval_is_scipys_and_covers():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(6)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    mean, half = fl.mean_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    draws = rng.standard_normal((2000, 5))
    covered = [
        abs(interval.mean) < interval.half_width for interval in map(fl.mean_interval, draws)
    ]
    assert 0.93 < np.mean(covered) < 0.97
    with pytest.raises(ValueError, match="at least two"):
        fl.mean_interval([1.0])
    with pytest.raises(ValueError, match="Invalid level=95"):
        fl.mean_interval([1.0, 2.0], level=95.0)


def test_with_body_takes_the_body_and_keeps_the_head():
    trained, fresh = fl.MLP((1, 4, 4), 52, seed=1), fl.MLP((1, 4, 4), 10, seed=2)
    joined = fl.with_body(fresh, fl.params_of(trained))
    assert torch.equal(joined["body.1.weight"], trained.body[1].weight)
    assert torch.equal(joined["head.weight"], fresh.head.weight)
    with pytest.raises(ValueError, match="body.1.weight is .*Build the model with the same body"):
        fl.with_body(fl.MLP((1, 4, 4), 10, hidden=(9,)), fl.params_of(trained))
    with pytest.raises(ValueError, match="body.1.weight is missing"):
        fl.with_body(fresh, {})
    with pytest.raises(ValueError, match="a body and a head"):
        fl.with_body(nn.Linear(2, 2), {})


def test_models_refuse_shapes_and_start_from_their_seed(as_readers_run_it):
    with pytest.raises(ValueError, match=r"\(8, 8\): not channels, height and width. Use \(1, h"):
        fl.CNN((8, 8), 2)
    with pytest.raises(TypeError, match="Invalid image_shape=64: not a sequence. Use a tuple"):
        fl.MLP(64, 2)
    with pytest.raises(ValueError, match="Invalid image_shape's size=0"):
        fl.MLP((1, 0), 2)
    with pytest.raises(ValueError, match="Invalid num_classes=0"):
        fl.MLP((1, 8, 8), 0)
    with pytest.raises(TypeError, match="Invalid d=5.0: not an integer"):
        fl.LinearNet(5.0, 2)
    with pytest.raises(ValueError, match="Invalid k=3: the body has d=2"):
        fl.LinearNet(2, 3)
    with pytest.raises(ValueError, match="at least 4x4 pixels. Use MLP"):
        fl.CNN((1, 3, 8), 2)
    same, other = fl.CNN((1, 8, 8), 2, seed=1), fl.CNN((1, 8, 8), 2, seed=2)
    assert distance(fl.params_of(fl.CNN((1, 8, 8), 2, seed=1)), fl.params_of(same)) == 0
    assert distance(fl.params_of(other), fl.params_of(same)) > 0.01
    body = fl.LinearNet(6, 2).double().body.weight
    np.testing.assert_allclose((body @ body.T).detach(), np.eye(2), atol=1e-6)
