"""What the one model check decides, and that every entrance rests on it."""

import copy
import io
import sys
import threading
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fedlib as fl
from fedlib import validate
from fedlib.strategy import Strategy

CONFIG = fl.FedAvgConfig(num_rounds=2, local_steps=3, cohort_size=3, batch_size=4, client_lr=0.1)


def federation(sizes=(5, 9, 3, 12), *, classes=3, shape=(1, 4, 4), dtype=torch.float64):
    rng = np.random.default_rng(0)
    inputs = torch.as_tensor(rng.standard_normal((sum(sizes), *shape)), dtype=dtype)
    labels = torch.as_tensor(rng.integers(classes, size=sum(sizes)))
    return fl.ClientData(inputs, labels, np.array(sizes))


def mlp(**options):
    return fl.MLP((1, 4, 4), 3, **options).double()


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def run(model, clients=None, config=CONFIG, **options):
    clients = federation() if clients is None else clients
    return fl.run_fedavg(model, clients, config, seed=0, progress=False, **options).params


def one_round(model, clients=None, config=CONFIG, **options):
    clients = federation() if clients is None else clients
    rng = np.random.default_rng([0, 0])
    return fl.run_round(model, fl.params_of(model), clients, config, rng=rng, **options)[0]


def local(model, clients=None, **options):
    clients = federation() if clients is None else clients
    rows = np.array([[0, 1], [2, 1]])
    options.pop("strategy", None)
    return fl.local_sgd(model, fl.params_of(model), *clients[0], rows, lr=0.1, **options).params


ENTRANCES = [run, one_round, local]


# --- Shapes and types ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ENTRANCES)
def test_no_entrance_broadcasts(as_readers_run_it, call):
    clients = fl.ClientData(torch.ones(29, 5), torch.ones(29), np.array([5, 9, 3, 12]))
    with pytest.raises(ValueError, match="Invalid model: .* one number per example"):
        call(nn.Linear(5, 1), clients)


@pytest.mark.parametrize("call", ENTRANCES)
def test_every_entrance_says_that_dtypes_differ(as_readers_run_it, call):
    with pytest.raises(ValueError, match="Invalid model: it cannot take .* to one dtype"):
        call(mlp().float(), federation())


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (torch.ones(3, 1), torch.ones(3), ValueError, r"Invalid outputs of shape \(3, 1\)"),
        (torch.ones(1), torch.ones(3), ValueError, "real targets need one number"),
        (torch.ones(3), torch.zeros(3).long(), ValueError, "one row of scores per example"),
        (torch.ones(3, 2, 4), torch.zeros(3, 4).long(), ValueError, "one row of scores"),
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), ValueError, "labels reach from 0 to 2"),
        (torch.ones(3, 2), torch.tensor([0, 1, -100]), ValueError, "labels reach from -100"),
        (torch.ones(3, 2).long(), torch.zeros(3).long(), TypeError, "outputs of type torch.int64"),
        ([1.0], torch.ones(1), TypeError, "Invalid outputs of type list"),
        (torch.ones(1), 1.0, TypeError, "Invalid targets of type float"),
    ],
)
@pytest.mark.parametrize("loss", [fl.task_loss, fl.losses.example_losses])
def test_a_loss_takes_one_row_per_target(as_readers_run_it, loss, outputs, targets, error, message):
    with pytest.raises(error, match=message):
        loss(outputs, targets)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(lr=-1.0), ValueError, "Invalid lr=-1.0"),
        (dict(lr="1"), TypeError, "Invalid lr='1'"),
        (dict(batches=np.array([[9]])), ValueError, "reach from 9 to 9, but the client has 5"),
        (dict(batches=np.array([[-1]])), ValueError, "reach from -1 to -1"),
        (dict(batches=np.array([[0.5]])), TypeError, "Invalid batches of type float64"),
        (dict(inputs=[[1.0]]), TypeError, "Invalid inputs of type list"),
        (dict(step="sgd"), TypeError, "Invalid step of type str"),
        (dict(trainable=["had"]), ValueError, "Invalid trainable: had is no parameter"),
        (dict(step=fl.per_fedavg(0.1), batches=np.array([[1]])), ValueError, "in groups of 2"),
    ],
)
def test_local_sgd_refuses(as_readers_run_it, change, error, message):
    model, (x, y) = mlp(), federation()[0]
    given = dict(params=fl.params_of(model), inputs=x, targets=y, batches=np.array([[0, 1]]))
    with pytest.raises(error, match=message):
        fl.local_sgd(model, **(given | dict(lr=0.1) | change))


def test_a_strategy_is_of_bools(as_readers_run_it):
    with pytest.raises(TypeError, match="Invalid stack='no': neither True nor False"):
        Strategy(stack="no")


def test_positions_of_another_client_are_refused():
    model, clients = mlp(), federation()
    rows = [np.array([[0, 5]]), np.array([[0, 1]])]
    with pytest.raises(ValueError, match="reach from 0 to 5, but the client has 5 examples"):
        fl.map_clients(model, fl.params_of(model), clients, np.array([0, 1]), rows, lr=0.1)
    with pytest.raises(ValueError, match="clients are 0 to 3"):
        fl.map_clients(model, fl.params_of(model), clients, np.array([4]), rows[1:], lr=0.1)


def test_a_label_that_was_written_later_is_refused():
    clients = federation()
    clients.targets[3] = -100
    with pytest.raises(ValueError, match="the least label is -100, written after"):
        run(mlp(), clients)


def test_outputs_that_overflow_are_called_so():
    clients = federation(dtype=torch.float32)
    huge = fl.ClientData(clients.inputs * 8e37, clients.targets, clients.sizes)
    with pytest.raises(ValueError, match="overflow"):
        run(mlp().float(), huge)


def test_nan_is_no_class():
    clients = fl.ClientData(torch.eye(2), torch.tensor([0, 0]), np.array([1, 1]))

    class Root(nn.Module):
        def forward(self, x):  # NaN for the second client's parameters only
            return (x + self.shift).sqrt()

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

    model, shifts = Root(), [torch.tensor(0.0), torch.tensor(-5.0)]
    fl.evaluate(model, {"shift": shifts[0]}, clients)
    assert fl.evaluate(model, [{"shift": s} for s in shifts], clients).tolist() == [1.0, 0.0]


# --- Rules --------------------------------------------------------------------------------------


def clip(params, grads, state, lr):
    length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    scale = (0.05 / length).clamp(max=1)
    return [p - lr * scale * g for p, g in zip(params, grads, strict=True)], state


def write(params, grads, state, lr):
    for p, g in zip(params, grads, strict=True):
        p.data.add_(g, alpha=-lr)
    return params, state


def noisy(params, grads, state, lr):
    return [p - lr * (g + torch.randn_like(g)) for p, g in zip(params, grads, strict=True)], state


def decay(params, grads, state, lr):  # of matrices only: a stack of biases is a matrix
    return [
        p - lr * (g + 0.1 * p * (p.ndim > 1)) for p, g in zip(params, grads, strict=True)
    ], state


def adam(params, grads, state, lr):
    if state is None:
        state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    pairs = zip(grads, state, strict=True)
    state = [(0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g) for g, (m, v) in pairs]
    return [m / (v.sqrt() + 1e-8) for m, v in state], state


def centred(params, grads, state, lr):
    ways, state = adam(params, grads, state, lr)
    return [p - lr * (u - u.mean()) for p, u in zip(params, ways, strict=True)], state


def lamb(params, grads, state, lr):
    ways, state = adam(params, grads, state, lr)
    pairs = zip(params, ways, strict=True)
    return [p - lr * u * p.norm() / (u.norm() + 1e-8) for p, u in pairs], state


def as_long_as_its_parameters(params, grads, state, lr):
    ways, state = adam(params, grads, state, lr)
    pairs = zip(params, ways, strict=True)
    return [p - lr * u * p.square().mean().sqrt() for p, u in pairs], state


def rule(update):
    return fl.LocalStep(update.__name__, lambda params, extra: None, update)


NOT_ENTRYWISE = [clip, decay, centred, lamb, as_long_as_its_parameters]


@pytest.mark.parametrize("update", NOT_ENTRYWISE)
def test_a_rule_that_is_not_entrywise_is_never_stacked(update):
    model, step = mlp(), rule(update)
    expected = run(model, step=step, strategy="loop")
    with pytest.warns(RuntimeWarning, match=f"{update.__name__} does not act entry by") as said:
        found = run(model, step=step)
    assert len(said) == 1
    assert distance(found, expected) < 1e-15
    assert distance(expected, run(model)) > 1e-6
    for strategy in ("stacked", Strategy(stack=True, chunk=2)):
        with pytest.raises(ValueError, match='entry by entry. Use strategy="threads"'):
            run(model, step=step, strategy=strategy)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (write, "Invalid step write: it writes into the parameters"),
        (noisy, "Invalid step noisy: for the same parameters and gradients it gives two results"),
        (lambda p, g, s, lr: (p[:1], s), "tensors of other numbers, shapes"),
        (lambda p, g, s, lr: (p.missing, s), r"it fails \('list' object has no"),
    ],
)
@pytest.mark.parametrize("call", ENTRANCES)
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_a_rule_that_breaks_its_contract_is_refused(call, strategy, update, message):
    model = mlp()
    before, generator = fl.params_of(model), torch.random.get_rng_state()
    with pytest.raises(ValueError, match=message):
        call(model, step=rule(update), strategy=strategy)
    assert distance(before, fl.params_of(model)) == 0
    assert torch.equal(generator, torch.random.get_rng_state())


def test_the_rules_of_the_library_are_stacked():
    for step in (fl.sgd, fl.momentum(), fl.proximal(0.1), fl.per_fedavg(0.1)):
        assert validate.check_rule(step, fl.params_of(mlp())) is None
    assert validate.check_rule(fl.control_variate, fl.params_of(mlp()), extra=True) is None


# --- The user's model and data ------------------------------------------------------------------


class Keeps(nn.Module):
    def forward(self, x):
        self.last = x.flatten(1).relu()
        return self.last


def test_a_model_that_keeps_activations_is_left_alone():
    model = fl.BodyHead(Keeps(), nn.Linear(16, 3)).double()
    model(federation().inputs[:2]).sum().backward()  # kept with a history, by the user's own call
    kept = model.body.last
    params = run(model, strategy="stacked")
    fl.features(model, params, federation().inputs)
    fl.evaluate(model, params, federation())
    assert model.body.last is kept
    torch.save(model.state_dict(), io.BytesIO())


@pytest.mark.parametrize("in_place", [nn.ReLU(inplace=True), nn.Hardtanh(-0.1, 0.1, inplace=True)])
def test_inputs_stay_as_they_are(in_place):
    clients = federation()
    before = clients.inputs.clone()

    def make(layer):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            body = nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 5))
            return fl.BodyHead(body, nn.Linear(5, 3)).double()

    other = copy.copy(in_place)
    other.inplace = False
    model, plain = make(in_place), make(other)
    full = replace(CONFIG, batch_size=None)
    assert distance(run(model, clients, full), run(plain, clients, full)) < 1e-15
    params = one_round(model, clients, full)
    images = clients.inputs.numpy().copy()
    features = [fl.features(m, params, images) for m in (model, plain)]
    assert torch.equal(*features)
    scores = [fl.evaluate(m, params, clients, metric="loss") for m in (model, plain)]
    np.testing.assert_array_equal(*scores)
    tune = dict(steps=3, lr=0.1, batch_size=None, part="head", seed=0)
    tuned = [fl.fine_tune(m, params, clients, **tune) for m in (model, plain)]
    assert max(map(distance, *tuned)) < 1e-15
    assert torch.equal(clients.inputs, before)
    np.testing.assert_array_equal(images, before)


def test_two_threads_may_use_one_model():
    model, clients = mlp(), federation()
    params = [fl.params_of(mlp(seed=seed)) for seed in (1, 2)]
    own = fl.params_of(model)
    expected = [fl.evaluate(model, p, clients, metric="loss") for p in params]
    wrong = []

    def work(i):
        for _ in range(30):
            found = fl.evaluate(model, params[i], clients, metric="loss", chunk=2)
            if not np.allclose(found, expected[i]):
                wrong.append(i)
        try:
            results[i] = run(model)
        except Exception as error:
            wrong.append(error)

    results = [None, None]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert distance(results[0], results[1]) == 0
    assert distance(own, fl.params_of(model)) == 0


# --- What is set around a run -------------------------------------------------------------------


@pytest.mark.parametrize(
    "ambient",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.no_grad,
        torch.inference_mode,
    ],
)
def test_a_run_does_not_depend_on_what_is_set_around_it(ambient):
    clients, model = federation(dtype=torch.float32), mlp().float()
    strategies = ["stacked", "loop", Strategy(threads=2)]
    expected = [run(model, clients, strategy=s) for s in strategies]
    tune = dict(steps=2, lr=0.1, batch_size=2, seed=0)
    tuned = fl.fine_tune(model, expected[0], clients, **tune)
    losses = fl.evaluate(model, tuned, clients, metric="loss")
    rows, stepped = fl.features(model, expected[0], clients.inputs), local(model, clients)
    with ambient():
        for strategy, params in zip(strategies, expected, strict=True):
            assert distance(run(model, clients, strategy=strategy), params) == 0
        assert max(map(distance, fl.fine_tune(model, expected[0], clients, **tune), tuned)) == 0
        assert (fl.evaluate(model, tuned, clients, metric="loss") == losses).all()
        assert torch.equal(fl.features(model, expected[0], clients.inputs), rows)
        assert distance(local(model, clients), stepped) == 0
        one_round(model, clients)


def test_data_made_in_inference_mode_are_refused_in_a_sentence():
    with torch.inference_mode():
        clients = federation()
        with pytest.raises(ValueError, match="made inside torch.inference_mode.*outside"):
            run(mlp(), clients)


def test_later_threads_start_with_the_callers_number_of_threads():
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        run(mlp(), strategy=Strategy(threads=2))
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), found) == (2, [2])
    finally:
        torch.set_num_threads(before)


# --- Once, and again when something has changed ---------------------------------------------------


def test_a_model_is_looked_at_once_and_again_when_it_changed(monkeypatch):
    looked = []

    def spy(*args):
        looked.append(args)
        return judge(*args)

    judge = validate._judge
    monkeypatch.setattr(validate, "_judge", spy)
    clients, model = federation(), mlp()
    model.body.append(nn.Dropout(0.5))
    model.eval()
    for _ in range(3):
        one_round(model, clients)
    fl.evaluate(model, [fl.params_of(model)] * 4, clients)
    assert len(looked) == 1
    one_round(model, federation())  # other data
    assert len(looked) == 2
    model.train()
    with pytest.raises(ValueError, match="as dropout does"):
        one_round(model, clients)
    model.eval()
    model.head.register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="backward hooks"):
        one_round(model, clients)


def test_a_forward_that_was_replaced_is_looked_at():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3).double()

        def forward(self, x):
            return self.head(x.flatten(1))

    model = Own()
    one_round(model, clients := federation())
    Own.forward = lambda self, x: self.head(x.flatten(1)) - x.mean()
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        one_round(model, clients)


# --- Resuming -----------------------------------------------------------------------------------


class Act(nn.Module):
    def __init__(self, act, constant):
        super().__init__()
        self.act, self.constant = act, constant

    def forward(self, x):
        return self.constant * self.act(x)


def acting(act=torch.relu, constant=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), Act(act, constant))
        return fl.BodyHead(body, nn.Linear(5, 3)).double()


def scaled(scale):
    return fl.LocalStep(
        "scaled",
        lambda params, extra: None,
        lambda params, grads, state, lr: (
            [p - scale * lr * g for p, g in zip(params, grads, strict=True)],
            state,
        ),
    )


@pytest.mark.parametrize(
    "change",
    [dict(act=torch.tanh), dict(constant=1.02), dict(step=scaled(1.1)), dict(act=torch.nn.ELU())],
)
def test_a_resumed_run_notices_changed_code(tmp_path, change):
    step = change.pop("step", scaled(1.0))
    path, longer = tmp_path / "run", replace(CONFIG, num_rounds=3)
    run(acting(), step=scaled(1.0), checkpoint=path)
    with pytest.raises(ValueError, match="code computes differs|another run [(]start="):
        run(acting(**change), config=longer, step=step, checkpoint=path)
    expected = run(acting(), config=longer, step=scaled(1.0))
    assert distance(run(acting(), config=longer, step=scaled(1.0), checkpoint=path), expected) == 0


def test_probes_agree_up_to_rounding():
    clients, model = federation(dtype=torch.float32), mlp().float()
    single = validate.check_model(model, fl.params_of(model), clients)
    double = mlp().float().double()
    as_double = fl.ClientData(clients.inputs.double(), clients.targets, clients.sizes)
    other = validate.check_model(double, fl.params_of(double), as_double)
    for step in (fl.sgd, fl.momentum(0.9), fl.control_variate):
        here, there = (validate.probe(ready, step) for ready in (single, other))
        assert validate.same_probe(here, there)
    assert not validate.same_probe(
        validate.probe(single, fl.momentum(0.9)), validate.probe(single, fl.momentum(0.8))
    )


def test_a_checkpoint_without_a_probe_is_still_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["fedlib.fedavg"], "probe", lambda *_: None)
    run(acting(), checkpoint=tmp_path / "run")
    monkeypatch.undo()
    longer = replace(CONFIG, num_rounds=3)
    expected = run(acting(), config=longer)
    assert distance(run(acting(), config=longer, checkpoint=tmp_path / "run"), expected) == 0


# --- Memory -------------------------------------------------------------------------------------


def test_full_batches_hold_one_row_of_positions():
    clients, model = federation((4000, 3000), shape=(2,)), nn.Linear(2, 3).double()
    tracemalloc.start()
    fl.fine_tune(model, fl.params_of(model), clients, steps=300, lr=0.1, batch_size=None, seed=0)
    config = replace(CONFIG, num_rounds=1, local_steps=300, batch_size=None, cohort_size=None)
    run(model, clients, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * 7000 * 8 / 4  # all steps' positions once, over four


# --- Models that would silently be others -------------------------------------------------------


class Odd(nn.Module):
    """A linear model with something added to it by ``more``, or used instead of it."""

    def __init__(self, forward, **more):
        super().__init__()
        self.head, self.how = nn.Linear(16, 3).double(), forward
        for name, make in more.items():
            setattr(self, name, make(self.head.weight))

    def forward(self, x):
        return self.how(self, x.flatten(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.t(),
        lambda w: [w[:, :].t()],
        lambda w: w.data.t(),
        lambda w: nn.Buffer(w.detach().t()),
        lambda w: SimpleNamespace(view=w.detach().t()),
    ],
)
@pytest.mark.parametrize("call", ENTRANCES)
def test_a_view_of_a_parameter_is_refused(call, make):
    def forward(self, x):
        kept = self.view[0] if isinstance(self.view, list) else self.view
        return x @ getattr(kept, "view", None) if isinstance(kept, SimpleNamespace) else x @ kept

    with pytest.raises(ValueError, match=r"reaches head.weight otherwise than through its layers"):
        call(Odd(forward, view=make))


def linear_of(change):
    return Odd(lambda self, x: self.head(change(x)))


def test_first_examples_that_are_equal_hide_nothing():
    model = linear_of(lambda x: x - x.mean(0))
    for value in (0, 1):
        for rows in (1, 2, 29):  # made equal
            clients = federation()
            clients.inputs[:rows] = value
            with pytest.raises(ValueError, match="depends on the others of its batch"):
                run(model, clients)
    clients = fl.ClientData(torch.tensor([[1, 2], [1, 2]]), torch.tensor([0, 2]), np.array([1, 1]))
    words, config = nn.Sequential(nn.Embedding(3, 8), nn.Flatten()), replace(CONFIG, cohort_size=2)
    run(nn.Sequential(words, nn.Linear(16, 3)), clients, config)
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        run(nn.Sequential(words, nn.BatchNorm1d(16, track_running_stats=False)), clients, config)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.cumsum(0), lambda x: x + torch.arange(len(x))[:, None]],
)
def test_outputs_do_not_depend_on_the_place_in_a_batch(change):
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        fl.evaluate(linear_of(change), fl.params_of(linear_of(change)), federation())


def test_one_example_is_a_batch():
    model = Odd(lambda self, x: self.head(x).squeeze())
    with pytest.raises(ValueError, match=r"it maps 1 inputs to shape \(3,\)"):
        fl.evaluate(model, fl.params_of(model), federation())


def test_a_result_that_a_model_keeps_may_have_any_name():
    def forward(self, x):
        self._last = self.head(x)
        return self._last

    model = Odd(forward)
    expected = run(model)
    model(federation().inputs[:2])
    assert distance(run(model), expected) == 0


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda x, w: x @ w, r"reaches 0|reaches body.1.weight"),
        (lambda x, w: x - x.mean(0), "depends on the others"),
        (lambda x, w: x + torch.rand(()), "draws from a global generator"),
        (lambda x, w: x + np.random.rand(), "draws from a global generator"),
    ],
)
def test_features_of_what_is_no_function_are_refused(add, message):
    layer = nn.Linear(16, 16).double()
    weight = layer.weight
    body = nn.Sequential(nn.Flatten(), layer, Act(lambda x: add(x, weight), 1.0))
    model = fl.BodyHead(body, nn.Linear(16, 3).double())
    clients, states = federation(), (torch.get_rng_state().tolist(), np.random.get_state()[1:3])
    for call in (
        lambda: fl.features(model, fl.params_of(model), clients.inputs),
        lambda: run(model, clients),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert str(states) == str((torch.get_rng_state().tolist(), np.random.get_state()[1:3]))


def test_a_rule_draws_nothing():
    def lazy(params, grads, state, lr):
        return [
            p - lr * g * (np.random.rand() < 2) for p, g in zip(params, grads, strict=True)
        ], None

    with pytest.raises(ValueError, match="so that no run could be repeated"):
        run(mlp(), step=rule(lazy))


def test_a_rule_that_changes_later_is_not_stacked():
    def later(params, grads, count, lr):
        return clip(params, grads, None, lr)[0] if count > 2 else [
            p - lr * g for p, g in zip(params, grads, strict=True)
        ], count + 1

    step = fl.LocalStep("later", lambda params, extra: 0, later)
    assert validate.check_rule(step, fl.params_of(mlp())) is None
    config = replace(CONFIG, local_steps=5)
    with pytest.warns(RuntimeWarning, match="later does not act entry by"):
        found = run(mlp(), config=config, step=step)
    assert distance(found, run(mlp(), config=config, step=step, strategy="loop")) < 1e-15


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).view(4, 3))

    def forward(self, x):
        return nn.functional.embedding(x, self.table, padding_idx=0).sum(1)


def test_padding_that_a_forward_pass_knows_is_not_stacked():
    inputs = torch.tensor([[1, 2], [2, 3], [0, 1], [0, 0], [3, 0], [1, 1]])
    clients = fl.ClientData(inputs, torch.tensor([0, 1, 2, 0, 1, 2]), np.array([2, 2, 2]))
    with pytest.warns(RuntimeWarning, match="padding_idx in its forward pass"):
        found = run(Words(), clients)
    assert distance(found, run(Words(), clients, strategy="loop")) == 0
    assert bool((found["table"][0] == Words().table[0]).all())


def test_inputs_that_are_written_into_later_stay_as_they_are():
    def clamp(x):
        return x.clamp_(max=1) if x.max() > 5 else x

    model, clients = Odd(lambda self, x: self.head(clamp(x))), federation((64, 64))
    clients.inputs[5:8], clients.inputs[100] = 9.0, 9.0
    before, params = clients.inputs.clone(), fl.params_of(model)
    scores = fl.evaluate(model, params, clients, metric="loss")
    other = Odd(lambda self, x: self.head(x.clamp(max=1) if x.max() > 5 else x))
    np.testing.assert_array_equal(scores, fl.evaluate(other, params, clients, metric="loss"))
    config = replace(CONFIG, batch_size=None, cohort_size=2)
    for strategy in ("loop", "stacked"):
        with pytest.raises(ValueError, match="writes into|cannot be stacked"):
            run(model, clients, config, strategy=strategy)
    assert torch.equal(clients.inputs, before)


def test_settings_that_changed_are_looked_at():
    model = Odd(lambda self, x: self.head(x - x.mean(0) * self.config.inner.centre))
    model.config = SimpleNamespace(inner=SimpleNamespace(centre=0))
    run(model, clients := federation())
    model.config.inner.centre = 1
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        run(model, clients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_notices_small_constants(dtype):
    def decaying(rate):
        def update(params, grads, state, lr):
            return [p - lr * (g + rate * p) for p, g in zip(params, grads, strict=True)], state

        return rule(update)

    def seen(slope=0.01, rate=1e-4):
        model = acting(nn.LeakyReLU(slope)).to(dtype)
        clients = federation(dtype=dtype)
        return validate.probe(
            validate.check_model(model, fl.params_of(model), clients), decaying(rate)
        )

    assert validate.same_probe(seen(), seen())
    assert not validate.same_probe(seen(), seen(rate=5e-4))
    assert not validate.same_probe(seen(), seen(slope=0.012))
    assert validate.same_probe(seen(), seen()[:2])  # of an older file


def test_a_head_that_uses_what_the_body_kept_is_tuned_behind_it():
    class Head(nn.Linear):
        def forward(self, x):
            return super().forward(x) + kept[-1][:, :3]

    kept = [None]

    class Body(nn.Flatten):
        def forward(self, x):
            kept[-1] = super().forward(x)
            return kept[-1]

    torch.manual_seed(0)
    model = fl.BodyHead(Body(), Head(16, 3).double())
    tuned = fl.fine_tune(
        model, fl.params_of(model), federation(), steps=3, lr=0.1, batch_size=None, part="head",
        seed=0, strategy="loop",
    )  # fmt: skip
    x, y = federation()[1]
    own = copy.deepcopy(model)
    optimizer = torch.optim.SGD(own.head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        fl.task_loss(own(x), y).backward()
        optimizer.step()
    assert distance(tuned[1], fl.params_of(own)) < 1e-14


def test_lower_precision_passes_over_frozen_integers():
    model = Odd(lambda self, x: self.head(x)).float()
    model.count = nn.Parameter(torch.tensor(3), requires_grad=False)
    clients = federation(dtype=torch.float32)
    plain = run(model, clients)
    lower = run(model, clients, strategy=Strategy(autocast=torch.bfloat16))
    assert next(iter(plain)) == "count"
    assert 0 < float((plain["head.weight"] - lower["head.weight"]).abs().max()) < 1e-2


class Made(TorchDispatchMode):
    """The largest tensor that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_full_batches_of_one_client_are_gathered_once():
    x, y = torch.randn(3000, 2), torch.randint(3, (3000,))
    model, rows = (
        nn.Linear(2, 3),
        fl.draw_batches(3000, local_steps=300, batch_size=None, rng=np.random.default_rng(0)),
    )

    def call(rows):
        return fl.local_sgd(model, fl.params_of(model), x, y, rows, lr=0.1).params

    expected = call(np.array(rows))
    with Made() as made:
        assert distance(call(rows), expected) == 0
    assert made.largest == 9000  # scores
