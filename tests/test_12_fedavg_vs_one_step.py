"""Chapter 12: what it says of the stored experiments, computed again from the rows."""

import numpy as np
import pytest
from scipy import stats

import fedlib as fl
from fedlib import stored as table
from studies import one_step
from studies import tuning as study

KINDS = ("known", "unseen", "cifar10")
CLASSES = (5, 20, 80)


@pytest.fixture(scope="module")
def stored():
    return fl.load_result("one_step")


@pytest.fixture(scope="module")
def harder():
    return fl.load_result("fine_tuning")


def by_seed(record, regime, classes, tau, matching="steps", *, part="head", kind="unseen"):
    """Mean accuracy at 20 images per class of every seed; by hand, not by ``table``."""
    found = {}
    for row in record["final"]:
        s = row["setting"]
        if (s["federation"][:2], s["local_steps"], s["matching"]) == (
            [regime, classes],
            tau,
            matching,
        ):
            assert row["seed"] not in found
            found[row["seed"]] = sum(row[part][kind]["20"]) / len(row[part][kind]["20"])
    return found


def lead(record, regime, classes, matching="steps", **which):
    """FedAvg with fifty steps minus one step, seed by seed."""
    fedavg = by_seed(record, regime, classes, 50, **which)
    one = by_seed(record, regime, classes, 1, matching, **which)
    assert fedavg.keys() == one.keys()
    return np.array([fedavg[seed] - one[seed] for seed in sorted(fedavg)])


def test_the_design_is_the_codes(stored):
    assert stored["design"] == one_step.STUDY.design()
    settings = [entry["setting"] for entry in stored["chosen"]]
    assert settings == list(one_step.STUDY.settings)
    assert [entry["setting"] for entry in stored["tuning"]] == settings


def test_the_core_has_all_seeds_and_none_was_tuned_on(stored):
    for setting in one_step.STUDY.settings[: one_step.STUDY.core]:
        assert table.seeds(stored, setting) == list(one_step.STUDY.seeds)
    assert study.TUNING_SEED not in one_step.STUDY.seeds


def test_no_best_client_step_size_is_at_an_end(stored):
    for entry, chosen in zip(stored["tuning"], stored["chosen"], strict=True):
        best = {
            float(lr): max((a for a in heads.values() if a is not None), default=0.0)
            for lr, heads in entry["tried"].items()
        }
        if best:
            order = sorted(best)
            assert chosen["client_lr"] == max(order, key=best.get)
            assert chosen["client_lr"] not in (order[0], order[-1])


def test_fine_tuning_step_sizes_are_the_best_that_were_tried(stored):
    for entry in stored["chosen"]:
        for part, budgets in entry["tried"].items():
            for budget, tried in budgets.items():
                best = max(a for a in tried.values() if a is not None)
                assert tried[str(entry["lrs"][part][budget])] == best


def test_nothing_diverged_with_the_chosen_step_sizes(stored, harder):
    assert not [row for record in (stored, harder) for row in record["final"] if "diverged" in row]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", CLASSES)
def test_h1_and_h2_hold_in_every_seed(stored, classes, kind):
    assert (lead(stored, "shared", classes, "rounds", kind=kind) > 0).all()
    assert (lead(stored, "shared", classes, kind=kind) < 0).all()
    assert -0.08 < lead(stored, "shared", classes, kind=kind).mean() < -0.015


def test_h3_holds_in_part(stored):
    leads = {C: [lead(stored, "private", C, kind=kind) for kind in KINDS] for C in CLASSES}
    assert np.mean(np.array(leads[5]) > 0) > 0.8
    assert np.mean(leads[5], axis=1).min() > 0.02
    assert np.mean(leads[20], axis=1)[0] > 0.01
    assert abs(np.mean(leads[20], axis=1)[1:]).max() < 0.01
    assert np.mean(leads[80], axis=1).max() < 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", CLASSES)
def test_private_labels_shift_the_comparison(stored, classes, kind):
    private, shared = (lead(stored, regime, classes, kind=kind) for regime in ("private", "shared"))
    assert stats.ttest_rel(private, shared).pvalue < 0.05
    assert private.mean() > shared.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", CLASSES)
def test_one_step_with_shared_labels_equals_centralised_training(stored, classes, kind):
    one = by_seed(stored, "shared", classes, 1, kind=kind)
    centralised = by_seed(stored, "pooled", 80, 50, kind=kind)
    gap = [one[seed] - centralised[seed] for seed in one]
    assert abs(np.mean(gap)) < 0.015


@pytest.mark.parametrize("kind", KINDS)
def test_with_eighty_private_classes_heads_score_below_training_from_scratch(stored, kind):
    scratch = np.mean(list(by_seed(stored, "untrained", 80, 1, part="scratch", kind=kind).values()))
    for tau in (1, 50):
        assert np.mean(list(by_seed(stored, "private", 80, tau, kind=kind).values())) < scratch


def test_the_lead_in_all_layers_was_one_of_speed(stored, harder):
    for kind in KINDS:
        for classes in CLASSES:
            assert (lead(stored, "private", classes, part="all", kind=kind) > 0).all()
        assert lead(harder, "private", 5, part="all", kind=kind).mean() > 0
        assert lead(harder, "private", 20, part="all", kind=kind).mean() < 0.01


@pytest.mark.parametrize("part", ["probe", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_harder_fine_tuning_keeps_the_clear_signs(harder, part, kind):
    for classes in (5, 20):
        assert (lead(harder, "shared", classes, part=part, kind=kind) < 0).all()
    assert lead(harder, "private", 5, part=part, kind=kind).mean() > 0


def test_the_harder_study_starts_from_the_same_bodies(stored, harder):
    sizes = {str(entry["setting"]): entry["client_lr"] for entry in stored["chosen"]}
    for entry in harder["chosen"]:
        assert entry["client_lr"] == sizes[str(entry["setting"])]


def test_private_orders_leave_the_second_moment(stored):
    """With all 80 classes the clients differ by the order of their outputs alone."""
    for seed in one_step.STUDY.seeds:
        shared, private = (
            next(
                row
                for row in stored["mean_head"]
                if row["federation"][:2] == [regime, 80] and row["seed"] == seed
            )
            for regime in ("shared", "private")
        )
        np.testing.assert_allclose(shared["client"], private["client"], atol=2e-4)
        assert np.linalg.norm(private["mean"]) < 0.2 * np.linalg.norm(shared["mean"])


def test_a_mean_head_of_c_private_outputs_has_less_than_c_directions(stored):
    """Heads start at zero, and the gradients of a softmax sum to zero over the outputs."""
    for row in stored["mean_head"]:
        regime, classes = row["federation"][:2]
        if regime == "private" and classes <= len(row["mean"]):
            assert row["mean"][classes - 1] == 0
            assert row["mean"][classes - 2] > 0.01


def test_intervals_are_students(stored):
    values = lead(stored, "private", 5)
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    interval = fl.mean_interval(values)
    assert interval.mean - interval.half_width == pytest.approx(low)
    assert interval.mean + interval.half_width == pytest.approx(high)
    pair = table.setting("private", 5, 50), table.setting("private", 5, 1)
    np.testing.assert_allclose(table.difference(stored, *pair), values)


def over_kinds(stored, classes, tau, part):
    """Accuracy with private labels and as many gradient steps, by seed."""
    each = [by_seed(stored, "private", classes, tau, part=part, kind=kind) for kind in KINDS]
    return np.array([np.mean([scores[seed] for scores in each]) for seed in sorted(each[0])])


def test_with_heads_alone_fifty_local_steps_stand_out_at_five_classes_only(stored):
    for classes in CLASSES:
        few = [over_kinds(stored, classes, tau, "head") for tau in (1, 2, 5, 10)]
        gains = [fl.mean_interval(values - few[0]) for values in few[1:]]
        assert all(abs(gain.mean) <= 0.011 for gain in gains)
        last = fl.mean_interval(over_kinds(stored, classes, 50, "head") - few[-1])
        assert (last.mean > last.half_width) == (classes == 5)
        told = {5: (0.025, 0.005), 20: (0.010, 0.010), 80: (-0.013, 0.002)}[classes]
        assert last == pytest.approx(told, abs=6e-4)


def test_with_all_layers_two_local_steps_bring_most_of_the_gain(stored):
    for classes in (5, 20):
        one, two, fifty = (over_kinds(stored, classes, tau, "all") for tau in (1, 2, 50))
        gain = fl.mean_interval(two - one)
        assert gain.mean > gain.half_width
        told = {5: (0.064, 0.099), 20: (0.032, 0.042)}[classes]
        assert (gain.mean, (fifty - one).mean()) == pytest.approx(told, abs=6e-4)
    one, *few, fifty = (over_kinds(stored, 80, tau, "all") for tau in (1, 2, 5, 10, 50))
    for values in few:
        gain = fl.mean_interval(values - one)
        assert abs(gain.mean) < gain.half_width
    assert (fifty - one).min() > 0


def test_clients_of_a_seed_spread_by_about_their_sampling_noise(stored):
    """Exercise 12.2: at most 0.031 for two networks without a mistake in common."""
    settings = [(regime, classes) for regime in ("shared", "private") for classes in CLASSES]
    variances = []
    for setting in settings:
        several, one = (
            table.accuracies(stored, table.setting(*setting, tau), kind="unseen") for tau in (50, 1)
        )
        variances.append((several - one).var(axis=1, ddof=1).mean())
    assert np.sqrt(np.mean(variances)) == pytest.approx(0.027, abs=6e-4)


# --- The long run: what the chapter's first pictures say, for every seed ------------------------

POINTS = (500, 1000, 2000, 4000, 8000, 16000)
RUNS = {"FedAvg": (50, 0.05), "one step": (1, 0.1), "one step, 0.05": (1, 0.05)}


@pytest.fixture(scope="module")
def long_run():
    return fl.load_result("long_run")["rows"]


def chosen(row, part):
    """Accuracy, mean over kinds, where validation clients do best; and how well they do."""
    tried = [-1.0 if a is None else a for a in row[part]["validation"]]
    best = tried.index(max(tried))
    return sum(row[part][kind][best] for kind in KINDS) / 3, tried[best]


def along(rows, regime, method, part):
    """Points by three seeds of (accuracy, validation's), with five classes per client."""
    tau, lr = RUNS[method]
    own = {
        (row["steps"], row["seed"]): chosen(row, part)
        for row in rows
        if row["federation"][:2] == [regime, 5] and row["variant"] == "plain"
        if (row["local_steps"], row["client_lr"]) == (tau, lr)
    }
    return np.array([[own[at, seed] for seed in range(3)] for at in POINTS])


@pytest.mark.parametrize("part", ["head", "probe"])
@pytest.mark.parametrize(
    ("method", "best", "below", "least"), [("one step", 2, 4, 0.1), ("one step, 0.05", 3, 5, 0.07)]
)
def test_private_labels_ruin_the_one_step_body_and_not_fedavgs(
    long_run, part, method, best, below, least
):
    start = np.array([chosen(r, part)[0] for r in long_run if r["variant"] == "untrained"])
    fedavg, one = (along(long_run, "private", m, part)[..., 0] for m in ("FedAvg", method))
    assert (fedavg > one).all()
    assert (fedavg - one)[-1].min() > least
    if part == "head":
        assert one.argmax(axis=0).max() <= best
        assert (one[below - 1] > start).all()
    assert (one[below:] < start).all()
    assert (fedavg > start).all()


@pytest.mark.parametrize("part", ["head", "probe"])
def test_with_shared_labels_large_steps_lose_the_lead_late(long_run, part):
    fedavg, one = (along(long_run, "shared", m, part) for m in ("FedAvg", "one step"))
    lead = (fedavg - one)[..., 0]
    assert (lead[:4] < 0).all()
    assert (lead[-1] > 0).all()
    if part == "head":
        assert (lead[4] > 0).all()
    else:
        assert abs(lead[4].mean()) < 0.01


@pytest.mark.parametrize("part", ["head", "probe"])
def test_with_shared_labels_fedavgs_own_step_keeps_the_lead(long_run, part):
    fedavg, one = (along(long_run, "shared", m, part)[..., 0] for m in ("FedAvg", "one step, 0.05"))
    assert (one[1:5] > fedavg[1:5]).all()
    assert abs((one - fedavg)[-1].mean()) < 0.025


@pytest.mark.parametrize("part", ["head", "probe"])
@pytest.mark.parametrize("method", list(RUNS)[1:])
def test_each_at_its_best_shared_labels_favour_one_step_and_private_ones_fedavg(
    long_run, method, part
):
    for regime, sign in (("shared", -1), ("private", 1)):
        runs = (along(long_run, regime, m, part) for m in ("FedAvg", method))
        best = [np.take_along_axis(x[..., 0], x[..., 1].argmax(0)[None], 0) for x in runs]
        assert (sign * np.subtract(*best) > 0).all()


def fits(rows, regime, method):
    """Accuracy on training images at every point, mean over three seeds."""
    tau, lr = RUNS[method]
    own = {
        (row["steps"], row["seed"]): row["training"]["accuracy"]
        for row in rows
        if row["federation"][:2] == [regime, 5] and row["variant"] == "plain"
        if (row["local_steps"], row["client_lr"]) == (tau, lr)
    }
    return np.array([np.mean([own[at, seed] for seed in range(3)]) for at in POINTS])


def at_equal_fit(rows, regime, fit, method):
    """FedAvg's lead where both fit their training images equally well."""
    fedavg, one = (
        np.interp(fit, fits(rows, regime, m), along(rows, regime, m, "head")[..., 0].mean(1))
        for m in ("FedAvg", method)
    )
    return fedavg - one


@pytest.mark.parametrize("method", list(RUNS)[1:])
def test_with_private_labels_what_is_lost_goes_with_what_is_memorised(long_run, method):
    assert fits(long_run, "private", method)[-1] > 0.75
    assert fits(long_run, "private", "FedAvg")[-1] < 0.5
    for fit in (0.28, 0.32, 0.36, 0.4, 0.44):
        assert 0.005 < at_equal_fit(long_run, "private", fit, method) < 0.045


@pytest.mark.parametrize("method", list(RUNS)[1:])
def test_with_shared_labels_the_lines_cross(long_run, method):
    assert at_equal_fit(long_run, "shared", 0.15, method) > 0.005
    assert at_equal_fit(long_run, "shared", 0.3, method) < -0.005
