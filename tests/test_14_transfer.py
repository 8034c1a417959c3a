"""Chapter 14: what a cohort shows, the chapter's own recursions, and the stored ablations."""

import json
import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlib as fl
from fedlib import linear
from studies import federations as cifar
from studies import transfer
from studies import tuning as study

ROOT = Path(__file__).parent.parent
seeds = st.integers(0, 2**32 - 1)


def federation(seed, M, d=7, k=3, c=4):
    """Heads with a mean; a body, a head, and a truth that is not made of unit vectors."""
    rng = np.random.default_rng(seed)
    B_star = np.linalg.qr(rng.standard_normal((d, k)))[0]
    tasks = linear.LinearTasks(B_star, rng.standard_normal((M, k, c)) + 0.5)
    return tasks, rng.standard_normal((d, k)), rng.standard_normal((k, c))


def moment(tasks, cohorts):
    """Mean over cohorts of the squared deviation of their mean head, term by term."""
    off = [tasks.heads[list(cohort)].mean(axis=0) - tasks.mean_head for cohort in cohorts]
    return sum(x @ x.T for x in off) / len(off)


@given(seeds, st.integers(2, 6), st.data())
@settings(max_examples=100, deadline=None)
def test_prop_cohort_mean(seed, M, data):
    m = data.draw(st.integers(1, M))
    tasks, B, W = federation(seed, M)
    cohorts = list(combinations(range(M), m))
    means = [tasks.heads[list(cohort)].mean(axis=0) for cohort in cohorts]
    np.testing.assert_allclose(np.mean(means, axis=0), tasks.mean_head, atol=1e-12)
    share = (M - m) / (m * (M - 1))
    np.testing.assert_allclose(moment(tasks, cohorts), share * tasks.head_covariance, atol=1e-12)

    alpha = 0.3
    step = dict(local_steps=1, lr=alpha)
    bodies = [linear.one_round(tasks, B, W, clients=np.array(co), **step).B for co in cohorts]
    expected = B - alpha * (B @ W - tasks.B_star @ tasks.mean_head) @ W.T
    np.testing.assert_allclose(np.mean(bodies, axis=0), expected, atol=1e-12)
    outside = np.eye(len(B)) - tasks.B_star @ tasks.B_star.T
    for body in bodies:
        shrunk = outside @ B @ (np.eye(3) - alpha * W @ W.T)
        np.testing.assert_allclose(outside @ body, shrunk, atol=1e-12)


@given(seeds, st.integers(3, 6))
@settings(max_examples=50, deadline=None)
def test_prop_cohort_mean_needs_draws_without_replacement(seed, M):
    """Negative control: with replacement the factor is 1/m, for every m > 1 a larger one."""
    tasks, _, _ = federation(seed, M)
    found = moment(tasks, list(product(range(M), repeat=2)))
    np.testing.assert_allclose(found, tasks.head_covariance / 2, atol=1e-12)
    claimed = (M - 2) / (2 * (M - 1)) * tasks.head_covariance
    assert np.trace(found - claimed) > 0.05 * np.trace(found)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_prop_cohort_mean_needs_uniform_draws(seed):
    """Negative control: whole groups with balanced orders show nothing, and one step stays put."""
    rng = np.random.default_rng(seed)
    heads, cohorts = balanced_groups(rng)
    tasks = linear.LinearTasks(np.eye(9)[:, :2], heads)
    assert np.abs(moment(tasks, cohorts)).max() < 1e-25
    assert np.trace((12 - 3) / (3 * 11) * tasks.head_covariance) > 1e-3

    body = start = rng.standard_normal((9, 2))
    w = 0.1 * rng.standard_normal((2, 3))
    for _ in range(30):
        who = np.array(cohorts[rng.integers(len(cohorts))])
        body, w, *_ = linear.one_round(tasks, body, w, local_steps=1, lr=0.1, clients=who)
    before = linear.subspace_distance(start, tasks.B_star)
    assert linear.subspace_distance(body, tasks.B_star) >= before - 1e-9


def balanced_groups(rng, groups=4, k=2, c=3):
    """Each group has one centred head in all cyclic orders; cohorts are whole groups."""
    base = rng.standard_normal((groups, k, c))
    base -= base.mean(axis=2, keepdims=True)
    heads = np.array([np.roll(head, z, axis=1) for head in base for z in range(c)])
    return heads, [tuple(range(g * c, g * c + c)) for g in range(groups)]


# --- What the chapter defines for itself -------------------------------------------------------


@pytest.fixture(scope="module")
def chapter():
    """The functions that the chapter's cells define, without running the cells around them."""
    notebook = json.loads((ROOT / "book" / "14_transfer.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    scope = {"np": np, "linear": linear, "norm": np.linalg.norm, "fl": fl}
    for source in sources:
        for function in re.findall(r"^def \w+\(.*?(?=^\S|\Z)", source, re.M | re.S):
            exec(function, scope)
    return scope


@pytest.mark.parametrize("seed", range(5))
def test_the_chapters_one_step_method_is_the_librarys(chapter, seed):
    rng = np.random.default_rng(seed)
    chapter["k"] = 3
    heads = rng.standard_normal((6, 3, 4)) / 3
    tasks = linear.LinearTasks(np.eye(8)[:, :3], heads)
    B0, W0 = rng.standard_normal((2, 8, 3)), 0.1 * rng.standard_normal((2, 3, 4))
    seen = iter([tasks.mean_head] * 50)
    B, W = chapter["one_step"](seen, B0, W0, 0.2, 50)
    for i in range(2):
        run = linear.run(tasks, B0[i], W0[i], local_steps=1, lr=0.2, num_rounds=50)
        np.testing.assert_allclose(B[i], run[50][0], atol=1e-10)
        np.testing.assert_allclose(W[i], run[50][1], atol=1e-10)
        angles = linear.principal_angles(B[i], tasks.B_star)
        np.testing.assert_allclose(chapter["sines"](B)[i][::-1], np.sin(angles), atol=1e-7)


def agreement_of(clients, classes_of, num_labels):
    """Root mean square over classes of the mean label, relative to full agreement."""
    one_hot = np.eye(num_labels)[clients.targets.numpy()] - 1 / num_labels
    owner = np.repeat(np.arange(clients.num_clients), clients.sizes)
    lengths = []
    for c in np.unique(classes_of):
        holders = np.unique(owner[classes_of == c])
        label = [one_hot[(owner == i) & (classes_of == c)].mean(axis=0) for i in holders]
        lengths.append((np.mean(label, axis=0) ** 2).sum())
    return np.sqrt(np.mean(lengths) / (1 - 1 / num_labels))


@pytest.fixture
def imitation(monkeypatch):
    """CIFAR-100 with a class's number for a picture: the dealing is real, the images are not."""
    labels = np.repeat(np.arange(100), 500)
    images = np.tile(labels.astype(np.float32)[:, None, None, None], (1, 3, 1, 1))
    monkeypatch.setattr(cifar, "load_images", lambda name, split: (images, labels))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_chapters_agreement_is_that_of_the_federations(chapter, imitation, share):
    federation = cifar.Federation("groups", 5, 100, share)
    real = []
    for seed in range(6):
        clients = cifar.training_clients(federation, seed)
        classes = clients.inputs[:, 0, 0, 0].numpy().round().astype(int)
        real.append(agreement_of(clients, classes, 5))
    rng = np.random.default_rng(0)
    simulated = np.mean([chapter["agreement"](share, rng) for _ in range(20)])
    assert np.mean(real) == pytest.approx(simulated, abs=0.03)
    formula = np.sqrt((1 - share) ** 2 + (1 - (1 - share) ** 2) / 6.25)
    assert np.mean(real) == pytest.approx(formula, abs=0.03)


@pytest.mark.parametrize(("C", "h", "renumbered"), [(2, 3, 1), (3, 4, 2), (3, 4, 4), (4, 3, 0)])
def test_a_fixed_number_that_renumbers_leaves_the_mean_label_of_exercise_2(C, h, renumbered):
    """Over all outcomes: holders 0 to renumbered - 1 say any number, the others say 0."""
    squares = []
    for said in np.ndindex((C,) * renumbered):
        labels = [*said] + [0] * (h - renumbered)
        mean_label = np.eye(C)[labels].mean(axis=0) - 1 / C
        squares.append(mean_label @ mean_label)
    s = renumbered / h
    exact, independent = (1 - s) ** 2 + s / h, (1 - s) ** 2 + (1 - (1 - s) ** 2) / h
    assert np.isclose(np.mean(squares), (1 - 1 / C) * exact)
    assert np.isclose(independent - exact, s * (1 - s) / h)


def test_balanced_orders_leave_no_mean_label(imitation):
    clients = cifar.training_clients(transfer.EIGHTY[0], 0)
    classes = clients.inputs[:, 0, 0, 0].numpy().round().astype(int)
    assert agreement_of(clients, classes, 5) == pytest.approx(0, abs=1e-12)


# --- The stored study --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return fl.load_result("transfer")


def test_the_stored_study_is_the_modules(stored):
    assert stored["design"] == json.loads(json.dumps(transfer.STUDY.design()))
    chosen = [entry["setting"] for entry in stored["chosen"]]
    assert chosen == transfer.SETTINGS
    for setting in chosen:
        found = [row["seed"] for row in stored["final"] if row["setting"] == setting]
        assert sorted(found) == list(transfer.STUDY.seeds)
    assert study.TUNING_SEED not in transfer.STUDY.seeds


def test_the_stored_step_sizes_are_the_best_on_validation_clients(stored):
    for entry, tuning in zip(stored["chosen"], stored["tuning"], strict=True):
        assert entry["setting"] == tuning["setting"]
        best = {
            float(lr): max((a for a in scores.values() if a is not None), default=-1)
            for lr, scores in tuning["tried"].items()
        }
        assert best[entry["client_lr"]] == max(best.values())
        smaller, larger = min(best), max(best)
        assert entry["client_lr"] not in (smaller, larger), entry["setting"]


def test_glyphs_follow_the_mean_label():
    """Chapter 3's study: the gap grows as agreement falls, and it is one step that moves."""
    ends = {}
    for regime, method in product(
        ("shared", "private", "balanced"), ("fedavg", "one_step_same_steps")
    ):
        rows = fl.load_result("puzzle")["final"]
        mine = [r["head"] for r in rows if (r["regime"], r["method"]) == (regime, method)]
        ends.setdefault(method, []).append(np.mean(mine))
    assert np.ptp(ends["fedavg"]) < 0.04
    assert np.all(np.diff(ends["one_step_same_steps"]) < -0.25)
    first, *_, last = np.subtract(ends["fedavg"], ends["one_step_same_steps"])
    assert first < -0.2
    assert last > 0.35


# --- What the chapter says, from the files and without the table reader ------------------------


def accuracy(name, federation, tau, *, part="head", kind="unseen", budget=20):
    """Accuracy by seed."""
    return {
        row["seed"]: np.mean(row[part][kind][str(budget)])
        for row in fl.load_result(name)["final"]
        if row["setting"]["federation"] == list(federation)
        and (row["setting"]["local_steps"], row["setting"]["matching"]) == (tau, "steps")
        and set(row["setting"]) == {"federation", "local_steps", "matching"}
    }


def gap(name, federation, **which):
    several, one = (accuracy(name, federation, tau, **which) for tau in (50, 1))
    assert several.keys() == one.keys()
    return np.array([several[seed] - one[seed] for seed in sorted(one)])


def excludes_zero(values):
    mean, half = fl.mean_interval(values)
    return abs(mean) > half


def test_the_order_of_methods_is_the_same_for_all_new_clients():
    methods = [(["untrained", 80, 1, 0.0], 1), (["private", 5, 100, 0.0], 1)]
    methods += [(["private", 5, 100, 0.0], 50), (["shared", 20, 100, 0.0], 50)]
    methods += [(["shared", 20, 100, 0.0], 1), (["pooled", 80, 1, 0.0], 50)]
    for kind in cifar.KINDS:
        means = [np.mean(list(accuracy("one_step", *m, kind=kind).values())) for m in methods]
        assert means == sorted(means)
        leads = [np.array(list(accuracy("one_step", *m, kind=kind).values())) for m in methods]
        assert all(excludes_zero(lead - leads[0]) for lead in leads[1:])


def test_leads_shrink_and_keep_their_sign():
    for federation, sign in [(["private", 5, 100, 0.0], 1), (["shared", 20, 100, 0.0], -1)]:
        gaps = [gap("one_step", federation, kind=kind) for kind in cifar.KINDS]
        assert all(excludes_zero(values) for values in gaps)
        sizes = [sign * values.mean() for values in gaps]
        assert sizes[0] > sizes[1] > sizes[2] > 0
        assert 0.35 < sizes[2] / sizes[0] < 0.6


def test_more_private_classes_close_the_gap_and_images_do_not():
    five = gap("one_step", ["private", 5, 100, 0.0])
    for classes in (20, 80):
        change = gap("one_step", ["private", classes, 100, 0.0]) - five
        assert change.mean() < 0
        assert excludes_zero(change)
    for budget in (5, 100):
        change = gap("one_step", ["private", 5, 100, 0.0], budget=budget) - five
        assert abs(change.mean()) < 0.005
        assert not excludes_zero(change)


def test_with_shared_labels_one_step_is_ahead_throughout():
    for classes, budget in product((5, 20, 80), (5, 20, 100)):
        values = gap("one_step", ["shared", classes, 100, 0.0], budget=budget)
        assert values.mean() < 0
        assert excludes_zero(values)


def test_the_best_heads_on_many_images_close_the_private_gap():
    which = dict(part="probe", kind="unseen")
    many = gap("fine_tuning", ["private", 5, 100, 0.0], budget=100, **which)
    assert abs(many.mean()) < 0.01
    few = gap("one_step", ["private", 5, 100, 0.0])[: len(many)]
    assert (many - few).mean() < 0
    assert excludes_zero(many - few)


DIAL = [["groups", 5, 100, share] for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
PRIVATE, BALANCED = ["private", 5, 80, 0.0], ["balanced", 5, 80, 0.0]


@pytest.mark.parametrize("kind", ["known", "unseen"])
def test_one_step_follows_the_mean_label_and_fedavg_hardly(kind):
    accuracies = {
        tau: [np.mean(list(accuracy("transfer", f, tau, kind=kind).values())) for f in DIAL]
        for tau in (1, 50)
    }
    assert np.ptp(accuracies[50]) < 0.02
    assert accuracies[1][0] - accuracies[1][-1] > 2 * np.ptp(accuracies[50])
    gaps = [gap("transfer", f, kind=kind) for f in (DIAL[0], DIAL[-1], PRIVATE, BALANCED)]
    for before, after in (gaps[:2], gaps[2:]):
        assert (after - before).mean() > 0
        assert excludes_zero(after - before)


def test_agreement_alone_does_not_put_one_step_ahead():
    for kind in cifar.KINDS:
        assert gap("transfer", DIAL[0], kind=kind).mean() > 0
        many_outputs = gap("one_step", ["shared", 5, 100, 0.0], kind=kind)
        assert many_outputs.mean() < 0
        assert excludes_zero(many_outputs)
