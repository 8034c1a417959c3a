"""Reading a stored study: every number comes from its own setting, seed, part, kind and budget."""

import numpy as np
import pytest

import fedlib as fl
from fedlib import stored as table

SETTINGS = [table.UNTRAINED, table.setting("shared", 5, 1), table.setting("shared", 5, 50)]
SEEDS = [3, 1, 2]


def value(n, seed, part, kind, budget):
    """A number that tells where it stands."""
    return n + seed / 10 + {"head": 0, "all": 5}[part] / 100 + len(kind) / 1000 + budget / 1e6


@pytest.fixture
def record():
    def row(n, seed):
        scores = {
            part: {
                kind: {
                    str(b): [value(n, seed, part, kind, b), value(n, seed, part, kind, b) + 1]
                    for b in (5, 20)
                }
                for kind in ("known", "cifar10")
            }
            for part in ("head", "all")
        }
        curve = {"round_num": [1, 2], "accuracy": [n, seed]}
        return {"setting": SETTINGS[n], "seed": seed, "curve": curve} | scores

    tried = {"0.2": {"0.1": 0.3, "1.0": 0.4}, "0.05": {"0.1": None, "1.0": None}}
    return {
        "final": [row(n, seed) for seed in SEEDS for n in (2, 0, 1)],
        "chosen": [{"setting": setting} for setting in SETTINGS],
        "tuning": [{"setting": setting, "tried": tried} for setting in SETTINGS],
    }


@pytest.mark.parametrize("part", ["head", "all"])
@pytest.mark.parametrize("kind", ["known", "cifar10"])
@pytest.mark.parametrize("budget", [5, 20])
def test_every_number_is_read_from_its_place(record, part, kind, budget):
    for n, setting in enumerate(SETTINGS):
        found = table.accuracies(record, setting, part=part, kind=kind, budget=budget)
        first = [value(n, seed, part, kind, budget) for seed in sorted(SEEDS)]
        np.testing.assert_allclose(found, np.stack([first, np.add(first, 1)], axis=1))
        scores = table.scores(record, setting, part=part, kind=kind, budget=budget)
        np.testing.assert_allclose(scores, np.add(first, 0.5))


def test_differences_pair_the_seeds(record):
    """In whatever order the rows are stored."""
    differences = table.difference(record, SETTINGS[2], SETTINGS[1], kind="known")
    np.testing.assert_allclose(differences, 1.0)
    assert fl.mean_interval(differences).half_width == pytest.approx(0, abs=1e-12)


def test_a_diverged_run_is_not_a_number(record):
    record["final"][0] = {"setting": SETTINGS[2], "seed": 3, "diverged": "in round 7"}
    found = table.scores(record, SETTINGS[2], kind="known")
    assert np.isnan(found).tolist() == [False, False, True]
    assert len(table.curve(record, SETTINGS[2])[1]) == 2
    record["final"][1]["head"]["known"]["20"] = None  # fine-tuning diverged
    assert np.isnan(table.scores(record, SETTINGS[0], kind="known")[2])


def test_a_partial_grid_pairs_the_seeds_that_both_have(record):
    del record["final"][0]  # SETTINGS[2], seed 3
    assert table.seeds(record, SETTINGS[2]) == [1, 2]
    assert table.seeds(record, SETTINGS[1]) == [1, 2, 3]
    assert table.accuracies(record, SETTINGS[2], kind="known").shape == (2, 2)
    for pair, sign in ((SETTINGS[2:0:-1], 1), (SETTINGS[1:], -1)):
        np.testing.assert_allclose(table.difference(record, *pair, kind="known"), [sign] * 2)


def test_an_unknown_setting_is_refused(record):
    unknown = table.setting("shared", 6, 1)
    assert table.seeds(record, unknown) == []
    with pytest.raises(KeyError, match="Invalid setting=.*Use one of"):
        table.accuracies(record, unknown)
    with pytest.raises(KeyError, match="Invalid setting=.*Use one of"):
        table.tuned(record, unknown)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(part="scratch"), "Invalid part=scratch: .*Use one of .'all', 'head'"),
        (dict(kind="unseen"), "Invalid kind=unseen: .*Use one of .'cifar10', 'known'"),
        (dict(kind="known", budget=100), "Invalid budget=100: .*Use one of .'20', '5'"),
    ],
)
def test_what_a_row_lacks_is_named(record, asked, message):
    with pytest.raises(KeyError, match=message):
        table.accuracies(record, SETTINGS[1], **asked)


def test_step_sizes_are_sorted_with_the_best_head(record):
    tried = table.tuned(record, SETTINGS[1])
    assert list(tried) == [0.05, 0.2]
    assert np.isnan(tried[0.05])
    assert tried[0.2] == 0.4


def test_curves_follow_the_seeds(record):
    rounds, accuracy = table.curve(record, SETTINGS[2])
    assert rounds.tolist() == [1, 2]
    assert accuracy.tolist() == [[2, 1], [2, 2], [2, 3]]
    del record["final"][0]["curve"]["accuracy"]  # seed 3 was not scored along the way
    assert table.curve(record, SETTINGS[2])[1].tolist() == [[2, 1], [2, 2]]


def test_a_setting_without_a_curve_is_refused(record):
    for row in record["final"]:
        row["curve"].pop("accuracy")
    with pytest.raises(KeyError, match="not scored along the way"):
        table.curve(record, SETTINGS[0])


def test_further_fields_of_a_setting_are_kept():
    wide = table.setting("groups", 5, 10, "rounds", num_clients=20, permuted=0.5, width=32)
    assert wide == {
        "federation": ["groups", 5, 20, 0.5],
        "local_steps": 10,
        "matching": "rounds",
        "width": 32,
    }
