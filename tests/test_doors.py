"""What a researcher may bring: each against a plain loop in torch, for every strategy, resumed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fedavg import CONFIG, distance, federation, plain_fedavg
from torch import nn
from torch.func import functional_call

import fedlib as fl
from fedlib.keys import AUGMENT, LOSS, RULE, Keys
from fedlib.strategy import Strategy

STRATEGIES = ["auto", "loop", Strategy(threads=2), "stacked", Strategy(stack=True, chunk=2)]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=str)


def mlp(outputs=3):
    return fl.MLP((1, 4, 4), outputs, hidden=(5,)).double()


def labelled(targets, seed=0):
    """The federation's inputs, with other targets."""
    clients = federation(seed=seed)
    rng = np.random.default_rng(seed)
    return fl.ClientData(clients.inputs, targets(rng, len(clients.inputs)), clients.sizes)


def plain(model, clients, config, loss, *, seed=5, step=None, steps_of=None, draws=False, **own):
    """FedAvg on any loss, with hooks for each door; a loop that a reader would write."""
    params, steps_of = fl.params_of(model), steps_of or (lambda size: config.local_steps)
    lr_of = own.get("lr_of", lambda t: config.client_lr)
    server, state = own.get("server"), None
    weights = own.get("weights", clients.sizes)
    for t in range(config.num_rounds):
        rng = np.random.default_rng([seed, t])
        if "cohort" in own:
            cohort = own["cohort"](rng, t)
        else:
            cohort = rng.choice(len(clients), config.cohort_size, replace=False)
        how = dict(batch_size=config.batch_size, rng=rng)
        sizes = [int(clients.sizes[i]) for i in cohort]
        batches = [fl.draw_batches(n, local_steps=steps_of(n), **how) for n in sizes]
        keys = Keys.of(int(rng.integers(2**63)), np.array(cohort)) if draws else None
        ends = []
        for place, (i, rows) in enumerate(zip(cohort, batches, strict=True)):
            client = {n: p.clone().requires_grad_() for n, p in params.items()}
            x, y = clients[i]
            for k, row in enumerate(rows):
                made = [keys.at(k, stream)[place] for stream in range(3)] if draws else None
                inputs = x[row]
                if "augment" in own:
                    inputs = own["augment"](inputs, made[AUGMENT])
                outputs = functional_call(model, client, (inputs,))
                value = loss(outputs, y[row], made[LOSS]) if own.get("noisy") else loss(
                    outputs, y[row]
                )  # fmt: skip
                grads = torch.autograd.grad(value, list(client.values()))
                if step is not None:
                    grads = step(list(client.values()), grads, made and made[RULE])
                client = {
                    n: (p - lr_of(t) * g).detach().requires_grad_()
                    for (n, p), g in zip(client.items(), grads, strict=True)
                }
            ends.append({n: p.detach() for n, p in client.items()})
        shares = np.array([weights[i] for i in cohort], dtype=float)
        shares /= shares.sum()
        mean = {n: sum(s * e[n] for s, e in zip(shares, ends, strict=True)) for n in params}
        if server is None:
            params = {n: p + config.server_lr * (mean[n] - p) for n, p in params.items()}
        else:
            params, state = server(params, mean, state)
    return params


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


def stopped_and_resumed(tmp_path, model, clients, config, **how):
    """Run to the end at once, and in two parts; return the parameters."""
    run = dict(seed=5, progress=False, **how)
    whole = fl.run_fedavg(model, clients, config, **run).params
    path = tmp_path / "run"
    fl.run_fedavg(model, clients, replace(config, num_rounds=2), checkpoint=path, **run)
    again = fl.run_fedavg(model, clients, config, checkpoint=path, **run).params
    assert distance(whole, again) == 0
    return whole


# --- 1. A loss of one's own ---------------------------------------------------------------------


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")


def several_labels(outputs, targets):
    each = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return each.mean(1)


class Tokens(nn.Module):
    """Scores for each of three positions."""

    def __init__(self):
        super().__init__()
        self.net = mlp(12)

    def forward(self, x):
        return self.net(x).unflatten(-1, (4, 3))


def tokens(outputs, targets):
    each = nn.functional.cross_entropy(outputs, targets, reduction="none", ignore_index=-100)
    return each.mean(1)


class TwoHeads(nn.Module):
    """A label and a number."""

    def __init__(self):
        super().__init__()
        self.net = mlp(4)

    def forward(self, x):
        outputs = self.net(x)
        return {"label": outputs[..., :3], "number": outputs[..., 3]}


def both(outputs, targets):
    label = nn.functional.cross_entropy(outputs["label"], targets[:, 0].long(), reduction="none")
    return label + (outputs["number"] - targets[:, 1]).square()


LOSSES = {
    "label smoothing": (smoothed, mlp, federation),
    "several labels": (
        several_labels,
        mlp,
        lambda: labelled(lambda rng, n: torch.as_tensor(rng.integers(2, size=(n, 3))).double()),
    ),
    "tokens": (
        tokens,
        Tokens,
        lambda: labelled(
            lambda rng, n: torch.as_tensor(rng.choice([-100, 0, 1, 2, 3], size=(n, 3)))
        ),
    ),
    "several outputs": (
        both,
        TwoHeads,
        lambda: labelled(
            lambda rng, n: torch.as_tensor(np.stack([rng.integers(3, size=n), rng.random(n)], 1))
        ),
    ),
}


@every_strategy
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_ones_own_is_what_is_descended(tmp_path, name, strategy):
    loss, make, clients = LOSSES[name]
    model, clients = make(), clients()
    found = stopped_and_resumed(tmp_path, model, clients, CONFIG, loss=loss, strategy=strategy)
    expected = plain(model, clients, CONFIG, lambda out, y: loss(out, y).mean())
    assert distance(found, expected) < 1e-13


@pytest.mark.parametrize("name", LOSSES)
def test_one_step_on_a_loss_of_ones_own_is_merged(name):
    loss, make, clients = LOSSES[name]
    model, clients, config = make(), clients(), replace(CONFIG, local_steps=1)
    run = dict(seed=5, progress=False, loss=loss)
    merged, apart = (
        fl.run_fedavg(model, clients, config, strategy=s, **run).params for s in ("auto", "loop")
    )
    assert distance(merged, apart) < 1e-13
    assert distance(merged, plain(model, clients, config, lambda o, y: loss(o, y).mean())) < 1e-13


@pytest.mark.parametrize("algorithm", [fl.run_scaffold, fl.run_fedrep])
def test_the_loss_that_is_ours_as_ones_own_changes_rounding_only(algorithm):
    clients, model = federation(), mlp()
    run = dict(seed=0, progress=False) | (dict(head_steps=2) if algorithm is fl.run_fedrep else {})
    own = lambda o, y: nn.functional.cross_entropy(o, y, reduction="none")  # noqa: E731
    a, b = (algorithm(model, clients, CONFIG, loss=loss, **run) for loss in (None, own))
    assert distance(a.params, b.params) < 1e-13
    other = algorithm(model, clients, CONFIG, loss=smoothed, **run)
    assert distance(a.params, other.params) > 1e-6


def test_fine_tuning_and_evaluation_take_it_too():
    loss, make, clients = LOSSES["several labels"]
    model, clients = make(), clients()
    params = fl.params_of(model)
    run = dict(steps=3, lr=0.1, batch_size=None, seed=0, loss=loss)
    for part in ("all", "head"):
        personal = fl.fine_tune(model, params, clients, part=part, **run)
        after = fl.evaluate(model, personal, clients, metric=loss)
        before = fl.evaluate(model, params, clients, metric=loss)
        assert (after < before).all()
    x, y = clients[1]
    assert before[1] == pytest.approx(loss(model(x), y).mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (0.5, TypeError, "Invalid loss of type float: not callable"),
        (lambda o, y: cross_entropy(o, y), ValueError, "Invalid loss: .* one real number per ex"),
        (lambda o, y: o - 1, ValueError, r"Invalid loss: for 2 examples it returns a Tensor of sh"),
        (lambda o, y: o.nothing(), ValueError, "Invalid loss: it fails for what the model returns"),
        (
            lambda o, y: smoothed(o, y) - smoothed(o, y).mean(),
            ValueError,
            "Invalid loss: an example's loss depends on the others",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused_before_the_first_round(
    as_readers_run_it, loss, error, message
):
    with pytest.raises(error, match=message):
        fl.run_fedavg(mlp(), federation(), CONFIG, seed=0, loss=loss, progress=False)


# --- 2. Server rules ----------------------------------------------------------------------------


def as_optimiser(make):
    """A server rule as an optimiser of torch whose gradient is the way back."""
    kept = {}

    def server(params, mean, state):
        if not kept:
            kept["leaves"] = {n: p.clone().requires_grad_() for n, p in params.items()}
            kept["optimiser"] = make(kept["leaves"].values())
        for n, p in kept["leaves"].items():
            p.grad = params[n] - mean[n]
        kept["optimiser"].step()
        return {n: p.detach().clone() for n, p in kept["leaves"].items()}, None

    return server


def published(second):
    """Algorithm 2 of Reddi et al., line by line."""

    def server(params, mean, state):
        eta, b1, b2, eps = 0.01, 0.9, 0.99, 1e-3
        m, v = state or (dict.fromkeys(params, 0.0), dict.fromkeys(params, eps**2))
        new_m, new_v, new = {}, {}, {}
        for n, p in params.items():
            delta = mean[n] - p
            new_m[n] = b1 * m[n] + (1 - b1) * delta
            new_v[n] = second(v[n], delta * delta, b2)
            new[n] = p + eta * new_m[n] / (torch.sqrt(torch.as_tensor(new_v[n])) + eps)
        return new, (new_m, new_v)

    return server


SERVERS = {
    "fedavgm": (
        fl.fedavgm(0.7, 0.8),
        lambda: as_optimiser(lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.8)),
    ),
    "fedadam": (fl.fedadam(), lambda: published(lambda v, d, b: b * v + (1 - b) * d)),
    "fedyogi": (
        fl.fedyogi(),
        lambda: published(lambda v, d, b: v - (1 - b) * d * torch.sign(torch.as_tensor(v - d))),
    ),
}
PLAIN_SERVER = replace(CONFIG, server_lr=1.0, num_rounds=5)


@every_strategy
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_rule_is_the_published_one(tmp_path, name, strategy):
    rule, server = SERVERS[name]
    model, clients = mlp(), federation()
    run = dict(server_rule=rule, strategy=strategy)
    found = stopped_and_resumed(tmp_path, model, clients, PLAIN_SERVER, **run)
    expected = plain(model, clients, PLAIN_SERVER, cross_entropy, server=server())
    assert distance(found, expected) < 1e-13


def test_a_plain_function_is_a_server_rule_and_its_state_is_kept(tmp_path):
    """Nesterov's momentum, whose state is None at first."""

    def nesterov(params, average, state):
        old = state or {n: torch.zeros_like(p) for n, p in params.items()}
        v = {n: 0.5 * old[n] + (average[n] - p) for n, p in params.items()}
        return {n: p + (average[n] - p) + 0.5 * v[n] for n, p in params.items()}, v

    model, clients = mlp(), federation()
    found = stopped_and_resumed(tmp_path, model, clients, PLAIN_SERVER, server_rule=nesterov)
    expected = plain(model, clients, PLAIN_SERVER, cross_entropy, server=nesterov)
    assert distance(found, expected) < 1e-13


def in_place(params, average, state):
    state = state or {name: torch.zeros_like(p) for name, p in params.items()}
    for name, v in state.items():
        v += average[name] - params[name]
    return {name: p + state[name] for name, p in params.items()}, state


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (in_place, r"writes into state/.*Return new tensors"),
        (lambda params, average, state: ({}, state), "is missing. Return every name"),
        (fl.fedadam, r"what makes a rule, not a rule. Use fedadam\(\)"),
        (lambda params, average, state: (params, (1, 2)), r"torch.tensor\(0\) for a counter"),
    ],
)
def test_a_server_rule_that_breaks_its_contract_is_refused(rule, message):
    run = dict(server_rule=rule, seed=0, progress=False)
    with pytest.raises((TypeError, ValueError), match=message):
        fl.run_fedavg(mlp(), federation(), PLAIN_SERVER, **run)


def test_a_server_rule_that_diverges_is_named():
    def infinite(params, average, state):
        return {name: p * float("inf") for name, p in average.items()}, state

    run = dict(server_rule=infinite, seed=0, progress=False)
    with pytest.raises(FloatingPointError, match="is not finite. .* smaller step in server_rule"):
        fl.run_fedavg(mlp(), federation(), PLAIN_SERVER, **run)


def test_a_server_rule_has_the_step_size(tmp_path):
    with pytest.raises(ValueError, match="Invalid server_lr=0.7: the server rule has a step size"):
        fl.run_fedavg(mlp(), federation(), CONFIG, seed=0, server_rule=fl.fedadam())
    path, run = tmp_path / "run", dict(seed=0, progress=False)
    config = replace(CONFIG, server_lr=1.0)
    fl.run_fedavg(mlp(), federation(), config, server_rule=fl.fedadam(), checkpoint=path, **run)
    for other in (None, fl.fedadam(0.02)):
        with pytest.raises(ValueError, match="server_rule=fedadam.* there"):
            fl.run_fedavg(mlp(), federation(), config, server_rule=other, checkpoint=path, **run)


# --- 3. Epochs, weights, schedules, decay, clipping ----------------------------------------------


@every_strategy
@pytest.mark.parametrize("batch_size", [2, None])
def test_epochs_are_as_many_steps_as_batches_fit(tmp_path, strategy, batch_size):
    model, clients = mlp(), federation()  # clients of 3 to 12 examples
    config = replace(CONFIG, local_steps=None, local_epochs=2, batch_size=batch_size)
    found = stopped_and_resumed(tmp_path, model, clients, config, strategy=strategy)
    steps_of = lambda size: 2 * (size // batch_size if batch_size else 1)  # noqa: E731
    expected = plain(model, clients, config, cross_entropy, steps_of=steps_of)
    assert distance(found, expected) < 1e-13
    scaffold = fl.run_scaffold(model, clients, config, seed=0, progress=False, strategy=strategy)
    assert np.isfinite(scaffold.history.loss).all()


def test_steps_or_epochs_but_not_both():
    with pytest.raises(ValueError, match="Invalid local_epochs=2: local_steps is given, too"):
        replace(CONFIG, local_epochs=2)


@every_strategy
def test_weights_and_schedules_are_ones_own(tmp_path, strategy):
    model, clients = mlp(), federation()
    weights, schedule = np.array([1.0, 4.0, 2.5, 0.5]), lambda t: 1 / (1 + t)
    run = dict(weights=weights, lr_schedule=schedule, strategy=strategy)
    found = stopped_and_resumed(tmp_path, model, clients, CONFIG, **run)
    own = dict(weights=weights, lr_of=lambda t: CONFIG.client_lr / (1 + t))
    assert distance(found, plain(model, clients, CONFIG, cross_entropy, **own)) < 1e-13


def clipped(params, grads, generator):
    length = torch.sqrt(sum(g.square().sum() for g in grads))
    return [g * min(1.0, 0.3 / float(length)) for g in grads]


@every_strategy
def test_decay_and_clipping_by_the_whole_gradients_length(tmp_path, strategy, recwarn):
    model, clients = mlp(), federation()
    both = fl.clip_by_global_norm(0.3, fl.weight_decay(0.2))
    found = stopped_and_resumed(tmp_path, model, clients, CONFIG, step=both, strategy=strategy)

    def step(params, grads, generator):
        return [g + 0.2 * p for p, g in zip(params, clipped(params, grads, None), strict=True)]

    assert distance(found, plain(model, clients, CONFIG, cross_entropy, step=step)) < 1e-13
    assert not recwarn.list  # it said what it is: no need to try


def test_decay_is_torchs():
    rule, rng = fl.weight_decay(0.3, fl.momentum(0.8)), np.random.default_rng(0)
    p = torch.as_tensor(rng.standard_normal(4)).requires_grad_()
    optimiser = torch.optim.SGD([p], lr=0.1, momentum=0.8, weight_decay=0.3)
    own, state = [p.detach().clone()], rule.init([p.detach()], None)
    for _ in range(4):
        p.grad = torch.as_tensor(rng.standard_normal(4))
        own, state = rule.update(own, [p.grad], state, 0.1)
        optimiser.step()
        assert torch.allclose(own[0], p.detach(), rtol=1e-14)


# --- 4. Who takes part --------------------------------------------------------------------------


def available(rng, round_num):
    """Only some clients each round, by probabilities, with repetition."""
    here = [0, 1, 3] if round_num % 2 else [1, 2, 3]
    return rng.choice(here, 4, p=[0.5, 0.25, 0.25])


@every_strategy
def test_a_cohort_rule_draws_by_seed_and_round_and_may_repeat_clients(tmp_path, strategy):
    model, clients = mlp(), federation()
    run = dict(cohort=available, strategy=strategy)
    found = stopped_and_resumed(tmp_path, model, clients, CONFIG, **run)
    expected = plain(model, clients, CONFIG, cross_entropy, cohort=available)
    assert distance(found, expected) < 1e-13


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no client takes part"), ([4], "positions reach"), ([0.5], "integers")],
)
def test_a_cohort_is_of_clients(as_readers_run_it, ids, message):
    with pytest.raises((ValueError, TypeError), match=f"Invalid cohort.*{message}"):
        fl.run_fedavg(
            mlp(), federation(), CONFIG, seed=0, cohort=lambda rng, t: ids, progress=False
        )


# --- 5. Randomness inside a step ----------------------------------------------------------------


def noisy_update(params, grads, state, lr, generator):
    noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    return fl.sgd.update(
        params, [g + 0.1 * z for g, z in zip(grads, noise, strict=True)], state, lr
    )


NOISY = fl.sgd._replace(name="noisy", update=noisy_update)


def add_noise(params, grads, generator):
    noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    return [g + 0.1 * z for g, z in zip(grads, noise, strict=True)]


def dropped(outputs, targets, generator):
    """Cross-entropy of scores with dropout."""
    keep = torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype) < 0.8
    return nn.functional.cross_entropy(outputs * keep / 0.8, targets, reduction="none")


def shifted(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


RANDOM = {
    "rule": (dict(step=NOISY), dict(step=add_noise)),
    "loss": (dict(loss=dropped), dict(noisy=True)),
    "augmentation": (dict(augment=shifted), dict(augment=shifted)),
    "all": (
        dict(step=NOISY, loss=dropped, augment=shifted),
        dict(step=add_noise, noisy=True, augment=shifted),
    ),
}


@every_strategy
@pytest.mark.parametrize("batch_size", [2, None])
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_drawn_in_a_step_does_not_depend_on_how_it_runs(
    tmp_path, name, strategy, batch_size
):
    how, own = RANDOM[name]
    model, clients = mlp(), federation((5, 6, 5, 7))
    config = replace(CONFIG, batch_size=batch_size)
    found = stopped_and_resumed(tmp_path, model, clients, config, strategy=strategy, **how)

    def loss(outputs, targets, *generator):
        return dropped(outputs, targets, *generator).mean() if generator else cross_entropy(
            outputs, targets
        )  # fmt: skip

    expected = plain(model, clients, config, loss, draws=True, **own)
    assert distance(found, expected) < 1e-13
    assert distance(found, plain_fedavg(model, clients, config, 5)) > 1e-4  # it is random


def test_another_seed_round_client_or_step_draws_other_numbers():
    keys = Keys.of(7, np.array([3, 5, 3]))
    first = keys.at(0, RULE)
    numbers = [torch.rand(3, generator=g) for g in (*first, *keys.at(1, RULE), *keys.at(0, LOSS))]
    numbers += [torch.rand(3, generator=g) for g in Keys.of(8, np.array([3])).at(0, RULE)]
    assert len({tuple(n.tolist()) for n in numbers}) == 10
    alone = Keys.of(7, np.array([5])).at(0, RULE)[0]  # whoever else takes part
    assert torch.rand(3, generator=alone).tolist() == numbers[1].tolist()


def test_a_cohort_by_hand_needs_a_generator_for_them():
    clients, model = federation(), mlp()
    args = (model, fl.params_of(model), clients, np.array([0]), [np.array([[0, 1]])])
    with pytest.raises(ValueError, match="Invalid rng=None: rule, loss or augmentation draw"):
        fl.map_clients(*args, lr=0.1, rule=NOISY)
    rng = np.random.default_rng(0)
    assert fl.map_clients(*args, lr=0.1, rule=NOISY, rng=rng).losses.shape == (1,)


# --- 6. Rules that are not entrywise ------------------------------------------------------------


def lars(params, grads, state, lr):
    """Layer-wise: a step as long as a share of the layer's weights."""
    rates = [p.norm() / (g.norm() + 1e-9) for p, g in zip(params, grads, strict=True)]
    return [p - lr * r * g for p, g, r in zip(params, grads, rates, strict=True)], state


@every_strategy
def test_a_rule_that_says_it_is_not_entrywise_is_right_for_stacks(strategy, recwarn):
    rule = fl.LocalStep("lars", fl.sgd.init, lars, entrywise=False)
    model, clients = mlp(), federation()
    run = dict(seed=5, progress=False, step=rule)
    found = fl.run_fedavg(model, clients, CONFIG, strategy=strategy, **run).params

    def step(params, grads, generator):
        return [p.norm() / (g.norm() + 1e-9) * g for p, g in zip(params, grads, strict=True)]

    assert distance(found, plain(model, clients, CONFIG, cross_entropy, step=step)) < 1e-13
    assert not recwarn.list


def test_one_that_does_not_say_so_is_found_out():
    rule = fl.LocalStep("lars", fl.sgd.init, lars)
    run = dict(seed=5, progress=False, step=rule)
    with pytest.warns(RuntimeWarning, match="the step lars does not act entry by entry"):
        fl.run_fedavg(mlp(), federation(), CONFIG, **run)
    with pytest.raises(ValueError, match="it stacks clients, but the step lars does not act"):
        fl.run_fedavg(mlp(), federation(), CONFIG, strategy="stacked", **run)


# --- 8. The history -----------------------------------------------------------------------------


def per_client(model, clients):
    return lambda params: {
        "accuracy": fl.evaluate(model, params, clients),
        "norm": params["head.bias"].norm(),
    }


def test_a_metric_of_each_client_is_kept(tmp_path):
    model, clients = mlp(), federation()
    run = dict(seed=0, progress=False, metrics=per_client(model, clients))
    result = fl.run_fedavg(model, clients, CONFIG, **run)
    assert result.history["accuracy"].shape == (4, 4)
    assert (
        result.history["accuracy"][-1].tolist()
        == fl.evaluate(model, result.params, clients).tolist()
    )
    path = tmp_path / "run"
    fl.run_fedavg(model, clients, replace(CONFIG, num_rounds=2), checkpoint=path, **run)
    again = fl.run_fedavg(model, clients, CONFIG, checkpoint=path, **run)
    assert again.history["accuracy"].tolist() == result.history["accuracy"].tolist()
    assert again.history["norm"].tolist() == result.history["norm"].tolist()


def test_a_history_is_a_table(tmp_path):
    history = fl.History(
        np.array([1, 2]), np.array([0.5, 1 / 3]), {"a": np.array([[1.0, 2.0], [3.0, 4.0]])}
    )
    history.to_csv(tmp_path / "history.csv")
    text = (tmp_path / "history.csv").read_text()
    assert text == "round_num,loss,a[0],a[1]\n1,0.5,1.0,2.0\n2,0.3333333333333333,3.0,4.0\n"
    pandas = pytest.importorskip("pandas")
    table = history.to_pandas()
    assert table.index.tolist() == [1, 2]
    assert table.equals(pandas.read_csv(tmp_path / "history.csv").set_index("round_num"))


@pytest.mark.parametrize("eval_every", [1, 2])
def test_a_run_stops_where_it_is_told_and_stays_there(tmp_path, eval_every):
    model, clients = mlp(), federation()
    config, asked = replace(CONFIG, num_rounds=9), []

    def stop(history):
        asked.append(history.round_num[-1])
        return history.round_num[-1] >= 4

    run = dict(seed=0, progress=False, eval_every=eval_every)
    whole = fl.run_fedavg(model, clients, replace(config, num_rounds=4), **run)
    path = tmp_path / "run"
    for checkpoint in (None, path, path):  # the third finds it stopped
        found = fl.run_fedavg(model, clients, config, stop=stop, checkpoint=checkpoint, **run)
        assert distance(found.params, whole.params) == 0
        assert found.history.round_num.tolist() == whole.history.round_num.tolist()
    assert all(int(t) % eval_every == 0 for t in asked)
    longer = fl.run_fedavg(model, clients, config, checkpoint=path, **run)
    assert distance(longer.params, fl.run_fedavg(model, clients, config, **run).params) == 0


# --- 9. An algorithm of one's own ---------------------------------------------------------------


def ditto(model, clients, config, mu):
    """Ditto (Li et al., 2021): FedAvg, and beside it a model of each client's own, pulled to it."""
    pull = fl.LocalStep(
        f"ditto({mu})",
        lambda params, centre: centre,
        lambda params, grads, centre, lr: (
            [p - lr * (g + mu * (p - c)) for p, g, c in zip(params, grads, centre, strict=True)],
            centre,
        ),
    )

    def init(params):
        return {
            "params": params,
            "own": {n: p.expand(len(clients), *p.shape).clone() for n, p in params.items()},
        }

    def play(state, rng):
        params, own = state["params"], state["own"]
        cohort, batches = fl.draw_round(clients, config, rng=rng)
        centre = {n: p.expand(len(cohort), *p.shape) for n, p in params.items()}
        args = (model, params, clients, cohort, batches)
        total = fl.sum_clients(*args, lr=config.client_lr)
        moved = fl.map_clients(
            *args,
            lr=config.client_lr,
            rule=pull,
            client_params={n: rows[cohort] for n, rows in own.items()},
            client_state=centre,
        )
        index = torch.as_tensor(cohort)
        own = {n: rows.index_copy(0, index, moved.params[n]) for n, rows in own.items()}
        return {"params": total.average(params), "own": own}, {
            "loss": total.mean_loss,
            "personal": float(moved.losses.mean()),
        }

    identity = {"algorithm": "ditto", "mu": mu, "data": lambda: clients.digest}
    return fl.Algorithm(init, play, lambda state: state["params"], identity)


def plain_ditto(model, clients, config, mu, seed):
    server = copy.deepcopy(model)
    own = [copy.deepcopy(model) for _ in range(len(clients))]
    for t in range(config.num_rounds):
        rng = np.random.default_rng([seed, t])
        cohort = rng.choice(len(clients), config.cohort_size, replace=False)
        how = dict(local_steps=config.local_steps, batch_size=config.batch_size, rng=rng)
        batches = [fl.draw_batches(int(clients.sizes[i]), **how) for i in cohort]
        ends, start = [], fl.params_of(server)
        for i, rows in zip(cohort, batches, strict=True):
            x, y = clients[i]
            for client, weight in ((copy.deepcopy(server), 0.0), (own[i], mu)):
                optimiser = torch.optim.SGD(client.parameters(), lr=config.client_lr)
                for row in rows:
                    pull = sum((p - start[n]).square().sum() for n, p in client.named_parameters())
                    optimiser.zero_grad()
                    (cross_entropy(client(x[row]), y[row]) + weight / 2 * pull).backward()
                    optimiser.step()
                if client is not own[i]:
                    ends.append(fl.params_of(client))
        sizes = clients.sizes[cohort] / clients.sizes[cohort].sum()
        for n, p in server.named_parameters():
            p.data = sum(s * end[n] for s, end in zip(sizes, ends, strict=True))
    return fl.params_of(server), [fl.params_of(client) for client in own]


def test_ditto_is_forty_lines_and_equals_a_plain_loop(tmp_path):
    model, clients = mlp(), federation()
    algorithm, path = ditto(model, clients, CONFIG, 0.5), tmp_path / "run"
    run = dict(seed=5, progress=False)
    whole = fl.run(algorithm, model, num_rounds=4, **run)
    fl.run(algorithm, model, num_rounds=2, checkpoint=path, **run)
    again = fl.run(algorithm, model, num_rounds=4, checkpoint=path, **run)
    assert distance(whole.params, again.params) == 0
    assert distance(whole.state["own"], again.state["own"]) == 0
    server, own = plain_ditto(model, clients, CONFIG, 0.5, 5)
    assert distance(whole.params, server) < 1e-13
    for i, client in enumerate(own):
        assert distance({n: rows[i] for n, rows in whole.state["own"].items()}, client) < 1e-13
    assert len(whole.history["personal"]) == 4
    with pytest.raises(ValueError, match="mu=0.5 there, 0.6 here"):
        fl.run(ditto(model, clients, CONFIG, 0.6), model, num_rounds=4, checkpoint=path, **run)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"params": {"w": 1.0}}, TypeError, r"Invalid state\['params'\]\['w'\] of type float"),
        ([torch.ones(1)], TypeError, "Invalid state of type list: no tensor. Use tensors by name"),
        (
            {"params": {"clients.w": torch.ones(1), "w.clients": torch.ones(1)}, "clients": {"w":
             torch.ones(1)}},
            ValueError,
            "two tensors of the name w.clients",
        ),
    ],
)  # fmt: skip
def test_a_state_is_made_of_tensors_by_name(as_readers_run_it, state, error, message):
    algorithm = fl.Algorithm(lambda params: state, lambda s, rng: (s, {}), lambda s: {}, {})
    with pytest.raises(error, match=message):
        fl.run(algorithm, mlp(), num_rounds=1, seed=0, progress=False)


def test_an_algorithm_that_diverges_is_stopped():
    def blow_up(state, rng):
        return {n: p * torch.inf for n, p in state.items()}, {}

    algorithm = fl.Algorithm(lambda p: p, blow_up, lambda s: s, {})
    with pytest.raises(FloatingPointError, match="diverged in round 1: .* Use a smaller step size"):
        fl.run(algorithm, mlp(), num_rounds=2, seed=0, progress=False)
