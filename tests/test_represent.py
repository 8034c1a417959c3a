"""Features, and what is measured on them: against definitions written out, and by their laws."""

from collections import OrderedDict
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn.linear_model import LogisticRegression
from torch import nn

import fedlib as fl

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(k, seed):
    return np.linalg.qr(normal(k, k, seed=seed))[0]


# features


def layered():
    """A body with named layers, one of them in place, and one activation used twice."""
    relu = nn.ReLU(inplace=True)
    conv, last = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)
    layers = dict(conv=conv, relu=relu, flat=nn.Flatten(), last=last, again=relu)
    return fl.BodyHead(nn.Sequential(OrderedDict(layers)), nn.Linear(3, 2)).double()


def test_features_are_the_bodys_outputs_under_the_given_parameters():
    images = torch.as_tensor(normal(7, 1, 4, 4)).requires_grad_()
    for build in (
        lambda seed: fl.MLP((1, 4, 4), 3, hidden=(6, 5), seed=seed).double(),
        lambda seed: fl.CNN((1, 4, 4), 3, seed=seed).double(),
    ):
        trained, model = build(1), build(2)
        found = fl.features(model, fl.params_of(trained), images, chunk=3)
        torch.testing.assert_close(found, trained.body(images).detach(), rtol=1e-12, atol=1e-12)
        assert not found.requires_grad


def test_features_of_a_linear_net_are_a_product():
    net, inputs = fl.LinearNet(5, 2).double(), normal(4, 5)
    found = fl.features(net, fl.params_of(net), inputs)
    np.testing.assert_allclose(found, inputs @ net.body.weight.detach().numpy().T, atol=1e-14)


def test_features_of_a_layer_are_what_it_passes_on():
    model, images = layered(), torch.as_tensor(normal(5, 1, 4, 4))
    params = fl.params_of(model)
    conv, last = model.body.conv(images).flatten(1), model.body.last
    flat = conv.clamp(min=0)
    expected = [conv, flat, flat, last(flat), last(flat).clamp(min=0)]
    assert (conv < 0).any()
    assert (last(flat) < 0).any()
    for layer, outputs in enumerate(expected):
        found = fl.features(model, params, images, layer=layer, chunk=2)
        torch.testing.assert_close(found, outputs, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, fl.features(model, params, images, chunk=2))


def test_features_meet_no_more_images_at_once_than_chunk():
    met = []

    class Meter(nn.Flatten):
        def forward(self, images):
            met.append(len(images))
            return super().forward(images)

    model, images = fl.BodyHead(Meter(), nn.Linear(4, 2)), torch.rand(7, 1, 2, 2)
    found = fl.features(model, fl.params_of(model), images, chunk=3)
    assert torch.equal(found, images.flatten(1))
    assert met[-3:] == [3, 3, 1]
    assert max(met) == 3


def test_features_are_those_of_evaluation_and_leave_the_model_alone():
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    model, images = fl.BodyHead(body, nn.Linear(3, 2)), torch.rand(6, 1, 2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    found = fl.features(model, fl.params_of(model), images)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, body.eval()(images).detach())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(model=3, params={}), TypeError, "Invalid model of type int: not a Module"),
        (dict(model=nn.Linear(2, 2)), ValueError, "Invalid model: it has no body. Use a model su"),
        (dict(params={}), ValueError, "Invalid params: body.conv.bias, body.conv.weight, .* miss"),
        (
            dict(model=fl.LinearNet(4, 2), layer=0),
            ValueError,
            "Invalid layer=0: .* one Linear, not",
        ),
        (dict(layer=5), ValueError, "Invalid layer=5: the body has 5 layers. Use layer <= 4"),
        (dict(layer=-1), ValueError, "Invalid layer=-1: must be at least 0"),
        (dict(layer="conv"), TypeError, "Invalid layer='conv': not an integer"),
        (dict(chunk=0), ValueError, "Invalid chunk=0"),
        (dict(images=torch.ones(2, 16)), ValueError, r"Invalid images: .* shape \(2, 16\), dtype"),
        (dict(images=torch.ones(2, 1, 4, 4)), ValueError, "float32 on cpu .* both to one dtype"),
    ],
)
def test_features_refuse(as_readers_run_it, change, error, message):
    arguments = dict(model=layered(), images=torch.ones(2, 1, 4, 4).double()) | change
    if "params" not in arguments:
        arguments["params"] = fl.params_of(arguments["model"])
    with pytest.raises(error, match=message):
        fl.features(**arguments)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_want_of_memory_is_not_the_images_fault(error):
    class Greedy(nn.Module):
        def forward(self, x):
            raise error("too much")

    model = fl.BodyHead(Greedy(), nn.Linear(3, 2))
    with pytest.raises(error, match="too much"):
        fl.features(model, fl.params_of(model), torch.ones(2, 3))


# linear CKA


def hsic(k, l):  # noqa: E741 the published letters
    """Equation 3 of Kornblith et al. (2019), as printed."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ l @ h) / (n - 1) ** 2


def published_cka(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@given(n=st.integers(2, 20), p=sizes, q=sizes, seed=seeds, shift=st.floats(-5, 5))
def test_cka_is_the_published_one(n, p, q, seed, shift):
    x, y = normal(n, p, seed=seed) + shift, normal(n, q, seed=[seed, 1]) + x_part(n, q, seed)
    found = fl.linear_cka(x, y)
    assert 0 <= found <= 1
    assert found == pytest.approx(published_cka(x, y), abs=1e-10)
    assert found == pytest.approx(fl.linear_cka(y, x), abs=1e-12)


def x_part(n, q, seed):
    """Features correlated with ``normal(n, p, seed=seed)``."""
    return normal(n, 6, seed=seed)[:, :1] @ normal(1, q, seed=[seed, 2])


@given(
    n=st.integers(2, 20),
    p=sizes,
    q=sizes,
    seed=seeds,
    scale=st.sampled_from([-1e-200, -2.0, 1e-3, 1e3, 1e200]),
)
def test_cka_ignores_rotation_scale_and_shift(n, p, q, seed, scale):
    x, y = normal(n, p, seed=seed), normal(n, q, seed=[seed, 1])
    moved = scale * (x @ rotation(p, seed) + normal(p, seed=[seed, 2]))
    assert fl.linear_cka(moved, y) == pytest.approx(fl.linear_cka(x, y), abs=1e-9)
    assert fl.linear_cka(x, moved) == pytest.approx(1, abs=1e-9)


def test_cka_does_change_under_an_invertible_map_that_is_no_rotation():
    x = normal(200, 4)
    assert fl.linear_cka(x, x @ np.diag([10, 1, 1, 1])) < 0.8
    # With n - 1 features or more, invertible maps reach anything: no index invariant to all of
    # them could tell two representations apart.
    y = normal(5, 4, seed=1)
    z = normal(5, 4, seed=2)
    centred = [v - v.mean(0) for v in (y, z)]
    np.testing.assert_allclose(centred[0] @ np.linalg.pinv(centred[0]) @ centred[1], centred[1])
    assert fl.linear_cka(y, z) < 0.9


@given(n=st.integers(3, 30), seed=seeds)
def test_cka_of_single_features_is_the_squared_correlation(n, seed):
    x, y = normal(n, 1, seed=seed), normal(n, 1, seed=[seed, 1])
    expected = stats.pearsonr(x[:, 0], y[:, 0]).statistic ** 2
    assert fl.linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_cka_of_uncorrelated_features_is_zero():
    design = np.linalg.qr(np.column_stack([np.ones(9), normal(9, 8)]))[0][:, 1:]  # centred
    assert fl.linear_cka(design[:, :3], design[:, 3:]) < 1e-25


@pytest.mark.parametrize(("n", "p"), [(40, 10), (40, 400), (400, 40)])
def test_cka_of_independent_features_is_p_over_p_plus_n(n, p):
    found = [fl.linear_cka(normal(n, p, seed=s), normal(n, p, seed=s + 50)) for s in range(20)]
    assert np.mean(found) == pytest.approx(p / (p + n), rel=0.05)


# Class similarity


@given(
    labels=st.lists(st.integers(-2, 2), min_size=3, max_size=15).filter(
        lambda labels: 1 < len(set(labels)) < len(labels)
    ),
    k=sizes,
    seed=seeds,
    centre=st.booleans(),
)
def test_class_similarity_is_the_mean_over_pairs(labels, k, seed, centre):
    x = normal(len(labels), k, seed=seed) + 1
    rows = x - x.mean(0) if centre else x
    pairs = {}
    for i, j in combinations(range(len(labels)), 2):
        value = 1 - cosine(rows[i], rows[j])
        pairs.setdefault((labels[i], labels[j]), []).append(value)
        pairs.setdefault((labels[j], labels[i]), []).append(value)
    classes = sorted(set(labels))
    matrix = [
        [np.mean(pairs[a, b]) if (a, b) in pairs else np.nan for b in classes] for a in classes
    ]
    within = [v for (a, b), values in pairs.items() if a == b for v in values]
    between = [v for (a, b), values in pairs.items() if a != b for v in values]
    found = fl.class_similarity(x, np.array(labels), centre=centre)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-12)
    assert found.within == pytest.approx(np.mean(within), abs=1e-12)
    assert found.between == pytest.approx(np.mean(between), abs=1e-12)


@given(seed=seeds, scale=st.floats(0.1, 10))
def test_class_similarity_ignores_lengths_and_rotation(seed, scale):
    x, labels = normal(12, 4, seed=seed), np.arange(12) % 3
    lengths = np.random.default_rng(seed).uniform(0.1, 10, (12, 1))
    expected = fl.class_similarity(x, labels)
    found = fl.class_similarity(scale * lengths * x @ rotation(4, seed), labels)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-12)


def test_features_behind_a_relu_look_alike_unless_centred():
    labels = np.repeat([0, 1], 50)
    x = np.maximum(normal(100, 20) + 1 + labels[:, None] * normal(1, 20, seed=1), 0)
    raw, centred = fl.class_similarity(x, labels), fl.class_similarity(x, labels, centre=True)
    assert raw.matrix.min() > 0.5
    assert centred.between < 0 < centred.within


# Linear probes


def regression(seed, n=60, k=4, c=3):
    """Train and test halves of a problem whose classes overlap."""
    x, w = normal(2 * n, k, seed=seed) * np.arange(1, k + 1) + 5, normal(k, c, seed=[seed, 1])
    y = (x @ w + 4 * normal(2 * n, c, seed=[seed, 2])).argmax(1)
    return x[:n], y[:n], x[n:], y[n:]


def optimum(x, y, test, C):
    """Predictions of the penalised optimum, found by torch."""
    mean, std = x.mean(0), x.std(0)
    x, y, test = (torch.as_tensor(v) for v in ((x - mean) / std, y, (test - mean) / std))
    w = torch.zeros(x.shape[1], int(y.max()) + 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(w.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        total = C * nn.functional.cross_entropy(x @ w + b, y, reduction="sum")
        total = total + 0.5 * w.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert w.grad.abs().max() < 1e-4
    return (test @ w + b).argmax(1).detach().numpy()


@pytest.mark.parametrize("C", [0.003, 1.0, 100.0])
def test_probe_predicts_what_the_penalised_optimum_predicts(C):
    x, y, test_x, test_y = regression(seed=3)
    predicted = optimum(x, y, test_x, C)
    assert 0.5 < np.mean(predicted == test_y) < 1
    assert fl.linear_probe(x, y, test_x, predicted, C=C) == 1
    assert fl.linear_probe(x, y, test_x, (predicted + 1) % 3, C=C) == 0
    assert fl.linear_probe(x, y, test_x, test_y, C=C) == np.mean(predicted == test_y)


def test_probe_reaches_the_optimum_for_correlated_features_too():
    digits = fl.load_digits()
    x, y = digits.images.reshape(len(digits), -1), digits.labels
    mean, std = x[:500].mean(0), x[:500].std(0)
    z = (x.astype(float) - mean) / np.where(std > 0, std, 1)
    newton = LogisticRegression(solver="newton-cg", tol=1e-9, max_iter=1000).fit(z[:500], y[:500])
    assert fl.linear_probe(x[:500], y[:500], x[500:], newton.predict(z[500:])) == 1


def test_probes_with_other_penalties_differ():
    x, y, test_x, _ = regression(seed=3)
    strong, weak = optimum(x, y, test_x, 0.003), optimum(x, y, test_x, 100.0)
    assert fl.linear_probe(x, y, test_x, strong, C=100.0) < 1
    assert np.mean(strong == weak) < 1


def test_probe_ignores_scales_units_and_the_names_of_classes():
    x, y, test_x, test_y = regression(seed=0)
    expected = fl.linear_probe(x, y, test_x, test_y)
    scale, shift = np.array([1e-6, 1.0, 1e4, -3.0]), normal(4)
    again = fl.linear_probe(
        x * scale + shift, 7 - 3 * y, torch.as_tensor(test_x * scale + shift), 7 - 3 * test_y
    )
    assert again == expected


def test_probe_reads_separable_classes_and_nothing_from_noise():
    labels = np.arange(300) % 5
    clear = np.eye(5)[labels] + 0.05 * normal(300, 5)
    assert fl.linear_probe(clear[:200], labels[:200], clear[200:], labels[200:]) == 1
    many = np.arange(3000) % 5
    noise = normal(3000, 5, seed=1)
    accuracy = fl.linear_probe(noise[:1500], many[:1500], noise[1500:], many[1500:])
    assert abs(accuracy - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1500)


def test_probe_leaves_the_global_generators_alone_and_repeats_itself():
    data = regression(seed=1)
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    assert fl.linear_probe(*data) == fl.linear_probe(*data)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.random.get_rng_state(), before[1])


# Effective rank


@given(n=st.integers(3, 12), k=sizes, seed=seeds, scale=st.sampled_from([1e-200, 1.0, 1e200]))
def test_effective_rank_is_the_exponential_of_scipys_entropy(n, k, seed, scale):
    x = normal(n, k, seed=seed) + 3
    values = np.sqrt(np.linalg.eigvalsh(np.cov(x.T, ddof=0).reshape(k, k)).clip(min=0))
    found = fl.effective_rank(scale * x)
    assert found == pytest.approx(np.exp(stats.entropy(values)), rel=1e-5)
    assert 1 <= found <= min(n - 1, k)


@given(n=st.integers(3, 12), k=sizes, r=sizes, seed=seeds)
def test_effective_rank_of_r_equal_singular_values_is_r(n, k, r, seed):
    r = min(r, k, n - 1)
    basis = np.linalg.qr(np.column_stack([np.ones(n), normal(n, n - 1, seed=seed)]))[0]
    x = basis[:, 1 : r + 1] @ rotation(k, seed)[:r] + normal(k, seed=[seed, 1])
    found = fl.effective_rank(x)
    assert found == pytest.approx(r, rel=1e-9)
    assert 1 <= found <= min(n - 1, k)


def test_effective_rank_of_a_line_is_one_wherever_it_lies():
    assert fl.effective_rank(normal(20, 1) * normal(1, 6, seed=1) + 100) == pytest.approx(1)


# What all of them take and refuse


def test_tensors_arrays_and_any_precision_are_taken():
    x, labels = normal(30, 4), np.arange(30) % 3
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        t = torch.as_tensor(x).to(dtype).requires_grad_()
        same, t_labels = t.detach().double().numpy(), torch.as_tensor(labels)
        assert fl.linear_cka(t, x) == fl.linear_cka(same, x)
        assert fl.effective_rank(t) == fl.effective_rank(same)
        found, expected = fl.class_similarity(t, t_labels), fl.class_similarity(same, labels)
        assert found[:2] == expected[:2]
        probe = fl.linear_probe(t, t_labels, t, t_labels)
        assert probe == fl.linear_probe(same, labels, same, labels)
    counts = np.random.default_rng(0).integers(0, 9, (30, 4))
    assert fl.effective_rank(counts) == fl.effective_rank(counts.astype(float))
    assert all(isinstance(v, float) for v in (fl.effective_rank(x), fl.linear_cka(x, x), probe))
    assert all(isinstance(v, float) for v in found[:2])


def test_inputs_are_not_changed():
    x, labels = normal(30, 4), np.arange(30) % 3
    x.flags.writeable = labels.flags.writeable = False
    fl.linear_cka(x, x)
    fl.effective_rank(x)
    fl.class_similarity(x, labels, centre=True)
    fl.linear_probe(x, labels, x, labels)


X, Y = normal(6, 2), np.arange(6) % 2
HOLED = np.where(np.eye(6, 2) > 0, np.nan, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.linear_cka(X, X[:5]), ValueError, "Invalid y of 5 examples: x has 6"),
        (lambda: fl.linear_cka(X, 0.1 + 0 * X), ValueError, "Invalid y: all examples have the"),
        (lambda: fl.linear_cka(HOLED, X), ValueError, "Invalid x: NaN or infinity"),
        (lambda: fl.linear_cka(X > 0, X), TypeError, "Invalid x of type bool: not real numbers"),
        (lambda: fl.linear_cka(X, X[0]), ValueError, r"Invalid y of shape \(2,\): .* Use one row"),
        (lambda: fl.effective_rank(X[:1]), ValueError, r"Invalid features of shape \(1, 2\)"),
        (lambda: fl.effective_rank(X[:, :0]), ValueError, r"Invalid features of shape \(6, 0\)"),
        (lambda: fl.effective_rank(0 * X), ValueError, "Invalid features: all examples have the"),
        (lambda: fl.class_similarity(X, Y[:5]), ValueError, r"Invalid labels of shape \(5,\): the"),
        (lambda: fl.class_similarity(X, Y / 2), TypeError, "Invalid labels of type float64: not i"),
        (lambda: fl.class_similarity(X, 0 * Y), ValueError, "1 distinct among 6 exam.* Use two cl"),
        (
            lambda: fl.class_similarity(X, np.arange(6)),
            ValueError,
            "6 distinct among 6",
        ),
        (
            lambda: fl.class_similarity(X * (Y[:, None] == 0), Y),
            ValueError,
            "Invalid features: row 1 is zero and has no direction",
        ),
        (lambda: fl.linear_probe(X, Y, X[:, :1], Y), ValueError, "test_features of 1 columns: tr"),
        (lambda: fl.linear_probe(X, Y, X[:0], Y[:0]), ValueError, r"test_features of shape \(0, 2"),
        (lambda: fl.linear_probe(X, Y[:5], X, Y), ValueError, r"train_labels of shape \(5,\)"),
        (lambda: fl.linear_probe(X, Y, X, Y[:5]), ValueError, r"test_labels of shape \(5,\)"),
        (lambda: fl.linear_probe(X, 0 * Y, X, Y), ValueError, "Invalid train_labels: one class"),
        (lambda: fl.linear_probe(X, Y, X, Y + 1), ValueError, "class 2 is not among train_labels"),
        (lambda: fl.linear_probe(HOLED, Y, X, Y), ValueError, "Invalid train_features: NaN"),
        (lambda: fl.linear_probe(X, Y, X, Y, C=0.0), ValueError, "Invalid C=0.0: not positive"),
    ],
)
def test_measures_refuse(as_readers_run_it, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_features_near_the_end_of_float64_are_like_others():
    x, labels = normal(8, 3), np.repeat([0, 1], 4)
    huge = x / np.abs(x).max() * 1.7e308
    assert fl.linear_cka(huge, x) == pytest.approx(1)
    assert fl.effective_rank(huge) == pytest.approx(fl.effective_rank(x))
    found, wanted = (fl.class_similarity(a, labels, centre=True) for a in (huge, x))
    np.testing.assert_allclose(found.matrix, wanted.matrix)


def test_rounding_is_no_feature():
    rows = np.array([[0.1, 0.3], [0.1, 0.2], [0.1, 0.4]])
    with pytest.raises(ValueError, match="row 0 is zero and has no direction"):
        fl.class_similarity(rows, np.array([0, 0, 1]), centre=True)
    almost = np.array([0.1, 0.1, np.nextafter(0.1, 1)])[:, None]
    with pytest.raises(ValueError, match="all examples have the same features"):
        fl.effective_rank(almost)
    x = normal(3, 1)
    assert fl.effective_rank(np.hstack([almost, x])) == 1


def test_images_of_any_layout_give_features(as_readers_run_it):
    model = nn.Sequential(OrderedDict(body=nn.Flatten(), head=nn.Linear(4, 2)))
    images, params = normal(3, 2, 2).astype(np.float32), fl.params_of(model)
    for odd in (images[::-1], images.astype(">f4")):
        found = fl.features(model, params, odd)
        np.testing.assert_array_equal(found, np.array(odd, np.float32).reshape(3, 4))
    for bad in (None, [[1.0], [1.0, 2.0]], ["a"]):
        with pytest.raises((TypeError, ValueError), match="Invalid images"):
            fl.features(model, params, bad)
