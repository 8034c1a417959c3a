"""Every kind of model on the page "Which models work", against a loop over torch.optim.SGD."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fedlib as fl
from fedlib.strategy import Strategy

PAGE = Path(__file__).parent.parent / "book" / "models.md"
D, CLASSES = 8, 3


class Calls(nn.Module):
    """A module from a function of its parts: ``forward = lambda self, x: ...``."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.calls = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.calls(self, x)


def chain(*layers):
    return nn.Sequential(nn.Linear(D, D), *layers, nn.Linear(D, CLASSES))


def hidden_and_head(forward, **parts):
    return Calls(forward, hidden=nn.Linear(D, D), head=nn.Linear(D, CLASSES), **parts)


def tied():
    model = hidden_and_head(lambda m, x: m.head(m.again(m.hidden(x).relu())), again=nn.Linear(D, D))
    model.again.weight = model.hidden.weight
    return model


def embedding(**options):
    words = nn.Embedding(7, 4, **options)
    forward = lambda m, x: m.head(m.words(x).flatten(1))  # noqa: E731
    return Calls(forward, words=words, head=nn.Linear(4 * D, CLASSES))


def recurrent():
    forward = lambda m, x: m.head(m.gru(x.unflatten(1, (4, 2)))[0][:, -1])  # noqa: E731
    return Calls(forward, gru=nn.GRU(2, D, batch_first=True), head=nn.Linear(D, CLASSES))


def attention():
    def forward(m, x):
        x = x.unflatten(1, (2, 4))
        return m.head(m.mix(x, x, x)[0].flatten(1))

    mix = nn.MultiheadAttention(4, 2, batch_first=True)
    return Calls(forward, mix=mix, head=nn.Linear(D, CLASSES))


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    forward = lambda m, x: m.head(m.mix(x.unflatten(1, (2, 4))).flatten(1))  # noqa: E731
    return Calls(forward, mix=layer, head=nn.Linear(D, CLASSES))


def buffered(forward):
    model = hidden_and_head(forward)
    model.register_buffer("scale", torch.tensor(0.5))
    return model


def counting(m, x):
    m.scale += 1
    return m.head(m.scale * m.hidden(x).relu())


def captured():
    model = hidden_and_head(lambda m, x: m.head(m.stem(x)))
    model.stem = lambda x: model.hidden(x).relu()
    return model


def listed(registered):
    model = hidden_and_head(lambda m, x: m.head((m.hidden(x) @ m.weights[0]).relu()))
    weight = nn.Parameter(torch.randn(D, D, dtype=torch.float64))
    model.weights = [weight]
    if registered:
        model.extra = weight
    return model


def hooked(kind):
    model = chain(nn.Tanh())
    if kind == "forward":
        model[0].register_forward_hook(lambda module, args, output: 2 * output)
    elif kind == "backward":
        model[0].register_full_backward_hook(lambda module, ins, outs: None)
    else:
        model[0].weight.register_hook(lambda grad: 0 * grad)
    return model


def subtracting(m, x):
    x.sub_(0.5)
    return m.head(m.hidden(x).relu())


def keeping(m, x):
    m.last = m.hidden(x).relu()
    return m.head(m.last)


def branching(m, x):
    h = m.hidden(x)
    return m.head(h if (h > 9).any() else h.relu())


def noisy():
    def forward(m, x):
        return m.head(m.hidden(x) + torch.randn(x.shape, generator=m.own, dtype=x.dtype))

    return hidden_and_head(forward, own=torch.Generator())


def called_once():
    model = nn.Sequential(nn.LazyLinear(D), nn.ReLU(), nn.Linear(D, CLASSES))
    model(torch.zeros(2, D))
    return model


def frozen():
    model = hidden_and_head(lambda m, x: m.head(m.hidden(x).relu()))
    model.hidden.requires_grad_(False)
    model.order = nn.Parameter(torch.arange(3), requires_grad=False)
    return model


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def convolutional():
    net = [nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*net, nn.Linear(16, CLASSES)).to(memory_format=torch.channels_last)


WORKS, APART, ALONE, REFUSED = "works", "falls back", "one by one", "refused"
ROWS = {
    "batch normalisation, training": (
        lambda: chain(nn.BatchNorm1d(D)), REFUSED, "changes its buffer 1.running_mean"),
    "batch normalisation, evaluation": (lambda: chain(nn.BatchNorm1d(D)).eval(), WORKS, ""),
    "batch normalisation without running means": (
        lambda: chain(nn.BatchNorm1d(D, track_running_stats=False)), REFUSED,
        "output depends on the others of its batch"),
    "group and layer normalisation": (
        lambda: chain(nn.GroupNorm(2, D), nn.LayerNorm(D)), WORKS, ""),
    "dropout, training": (
        lambda: chain(nn.Dropout()), REFUSED, "draws from a global generator"),
    "dropout, evaluation": (lambda: chain(nn.Dropout()).eval(), WORKS, ""),
    "layers that share a weight": (tied, WORKS, ""),
    "embedding": (embedding, WORKS, ""),
    "embedding with padding_idx": (
        lambda: embedding(padding_idx=0), APART, "padding_idx of words would be ignored"),
    "embedding, sparse": (lambda: embedding(sparse=True), APART, "cannot be stacked"),
    "embedding with max_norm": (
        lambda: embedding(max_norm=0.1), REFUSED, "writes into its parameter words.weight"),
    "embedding with scale_grad_by_freq": (
        lambda: embedding(scale_grad_by_freq=True), REFUSED,
        "part in the gradient of words.weight depends on the others"),
    "recurrent layers (GRU, LSTM)": (recurrent, ALONE, "cannot be stacked"),
    "multi-head attention": (attention, WORKS, ""),
    "transformer encoder, training": (encoder, WORKS, ""),
    "transformer encoder, evaluation": (lambda: encoder().eval(), APART, "cannot be stacked"),
    "buffers that stay": (
        lambda: buffered(lambda m, x: m.head(m.scale * m.hidden(x).relu())), WORKS, ""),
    "buffers that change": (lambda: buffered(counting), REFUSED, "changes its buffer scale"),
    "spectral norm, training": (
        lambda: chain(nn.utils.parametrizations.spectral_norm(nn.Linear(D, D))), REFUSED,
        "changes its buffer 1.parametrizations.weight"),
    "spectral norm, evaluation": (
        lambda: chain(nn.utils.parametrizations.spectral_norm(nn.Linear(D, D))).eval(), WORKS, ""),
    "weight norm": (
        lambda: chain(nn.utils.parametrizations.weight_norm(nn.Linear(D, D))), WORKS, ""),
    "weight norm by a hook (the older form)": (
        lambda: chain(nn.utils.weight_norm(nn.Linear(D, D))), WORKS, ""),
    "lazy layers": (lambda: chain(nn.LazyLinear(D)), REFUSED, "has no shape yet"),
    "lazy layers after a first call": (called_once, WORKS, ""),
    "checkpointed activations": (
        lambda: hidden_and_head(
            lambda m, x: m.head(checkpoint(lambda z: m.hidden(z).relu(), x, use_reentrant=False))
        ), APART, "cannot be stacked"),
    "torch.autograd.Function of the old form": (
        lambda: hidden_and_head(lambda m, x: m.head(Cube.apply(m.hidden(x)))), APART,
        "cannot be stacked"),
    "layers captured by a lambda": (captured, REFUSED, "reaches hidden.weight otherwise"),
    "parameters also in a plain list": (
        lambda: listed(registered=True), REFUSED, "reaches extra otherwise"),
    "parameters in a plain list only": (lambda: listed(registered=False), WORKS, ""),
    "forward hooks": (lambda: hooked("forward"), WORKS, ""),
    "backward hooks": (lambda: hooked("backward"), REFUSED, "has backward hooks"),
    "gradient hooks of a parameter": (
        lambda: hooked("gradient"), REFUSED, "0.weight has gradient hooks"),
    "float16": (lambda: chain(nn.ReLU()), WORKS, ""),
    "bfloat16": (lambda: chain(nn.ReLU()), WORKS, ""),
    "channels_last": (convolutional, ALONE, ""),
    "tuples as outputs": (
        lambda: hidden_and_head(lambda m, x: (m.head(m.hidden(x)), x)), REFUSED,
        "maps 2 inputs to tuple"),
    "in-place layers": (
        lambda: nn.Sequential(nn.Flatten(), nn.SiLU(inplace=True), *chain(nn.ReLU(inplace=True))),
        WORKS, ""),
    "inputs that the forward pass writes into": (lambda: hidden_and_head(subtracting), WORKS, ""),
    "branches that depend on the data": (
        lambda: hidden_and_head(branching), APART, "data-dependent control flow"),
    "activations that are kept": (lambda: hidden_and_head(keeping), WORKS, ""),
    "a generator of its own": (noisy, REFUSED, "gives two results"),
    "frozen parameters, also of integers": (frozen, WORKS, ""),
    "TorchScript": (
        lambda: torch.jit.script(chain(nn.ReLU()).double()), REFUSED, "compiled by torch.jit"),
}  # fmt: skip
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(params=ROWS)
def row(request):
    name = request.param
    build, outcome, sentence = ROWS[name]
    dtype = DTYPES.get(name, torch.float64)

    def make():
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lazy layers and older forms
            torch.manual_seed(0)
            model = build()
            return model if "Script" in name else model.to(dtype)

    rng, sizes = np.random.default_rng(0), np.array([5, 9, 3, 7])
    inputs = torch.as_tensor(rng.standard_normal((24, D))).to(dtype)
    if name.startswith("embedding"):
        inputs = torch.as_tensor(rng.integers(7, size=(24, D)))
    clients = fl.ClientData(inputs, torch.as_tensor(rng.integers(CLASSES, size=24)), sizes)
    return make, clients, outcome, sentence


COHORT = np.array([3, 0, 1])


def draw(clients, local_steps):
    rng = np.random.default_rng(1)
    sizes = clients.sizes[COHORT].tolist()
    return [fl.draw_batches(n, local_steps=local_steps, batch_size=4, rng=rng) for n in sizes]


def train(model, clients, strategy, local_steps=3):
    """Weighted averages of the cohort's parameters, by name."""
    params = fl.params_of(model)
    batches = draw(clients, local_steps)
    total = fl.sum_clients(model, params, clients, COHORT, batches, lr=0.1, strategy=strategy)
    return params | total.average(params)


def by_torch(make, clients, local_steps=3):
    total = {}
    for i, rows in zip(COHORT, draw(clients, local_steps), strict=True):
        own, (x, y) = make(), clients[i]
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        for batch in rows:
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x[batch]), y[batch]).backward()
            optimizer.step()
        for name, p in own.named_parameters():
            total[name] = total.get(name, 0) + int(clients.sizes[i]) * p.detach().double()
    return {name: p / int(clients.sizes[COHORT].sum()) for name, p in total.items()}


def near(found, expected, dtype):
    assert found.keys() == expected.keys()
    most = 3 * torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps
    return all(float((found[n].double() - p).abs().max()) <= most for n, p in expected.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap's, of seldom layers
def test_what_the_page_says_of_a_kind_of_model_is_so(row):
    make, clients, outcome, sentence = row
    model, before = make(), clients.inputs.clone()
    stacks = ["stacked", Strategy(stack=True, chunk=2)]
    if outcome == REFUSED:
        for strategy in ["auto", "loop", "merged", *stacks]:
            with pytest.raises(ValueError, match="Invalid model") as refusal:
                train(model, clients, strategy, local_steps=1)
            assert sentence in str(refusal.value)
        return
    runs = ["loop", "threads", Strategy(threads=2)] + (["auto", *stacks] * (outcome == WORKS))
    dtype, expected = clients.inputs.dtype, by_torch(make, clients)
    for strategy in runs:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            assert near(train(model, clients, strategy), expected, dtype), strategy
    if outcome == APART:
        with pytest.warns(RuntimeWarning, match='strategy="threads"') as said:
            assert near(train(model, clients, "auto"), expected, dtype)
        assert len([w for w in said if w.category is RuntimeWarning]) == 1
        assert re.search(sentence, str(said[0].message)) or len(said) > 1
    if outcome != WORKS and sentence:
        for strategy in stacks:
            with pytest.raises(ValueError, match="Invalid strategy: it stacks clients") as refusal:
                train(model, clients, strategy)
            assert sentence in str(refusal.value)
    one = by_torch(make, clients, local_steps=1)
    assert near(train(model, clients, "merged", local_steps=1), one, dtype)
    assert torch.equal(clients.inputs, before)


def test_the_page_and_the_tests_list_the_same_rows():
    lines = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", PAGE.read_text(), re.M)[2:]
    told = {kind.replace("`", ""): what for kind, what in lines}
    assert list(told) == list(ROWS)
    for kind, (_, outcome, sentence) in ROWS.items():
        assert told[kind].startswith(outcome), kind
        said = re.findall("“(.+?)”", told[kind])
        assert all(re.sub(r"`|…", "", s) in sentence for s in said), kind
        assert bool(said) == (outcome in (REFUSED, APART)), kind
