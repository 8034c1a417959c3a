"""The federations and studies of Part III: who holds what, what is tuned, what is stored."""

import argparse
import functools
import itertools
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedlib as fl
from fedlib import stored as table
from studies import (
    comparison,
    fine_tuning,
    inside,
    neighbours,
    one_step,
    reach,
    runner,
    transfer,
)
from studies import federations as cifar
from studies import tuning as study
from studies.federations import Federation

SEARCH = study.TuningStudy("x", [])
STUDIES = [one_step.STUDY, transfer.STUDY, neighbours.STUDY]
RESULTS = Path(__file__).parent.parent / "book" / "results"
STORED = [s.name for s in STUDIES if (RESULTS / f"{s.name}.json").exists()]


@pytest.fixture
def rows_for_images(monkeypatch):
    """CIFAR whose images are single pixels that hold their row; test rows start at 50,000."""

    def fake(name, split):
        num_classes = int(name.removeprefix("cifar"))
        size, first = (50_000, 0) if split == "train" else (10_000, 50_000)
        rows = np.arange(first, first + size, dtype=np.float32)
        labels = np.random.default_rng(size).permutation(np.arange(size) % num_classes)
        return rows.reshape(-1, 1, 1, 1), labels

    monkeypatch.setattr(cifar, "load_images", fake)
    return {split: fake("cifar100", split)[1] for split in ("train", "test")}


def rows_of(clients):
    return clients.inputs.flatten().long().numpy()


@pytest.mark.parametrize("classes", [5, 20, 80])
@pytest.mark.parametrize("regime", ["shared", "private"])
def test_training_clients_hold_known_classes_and_no_image_twice(rows_for_images, regime, classes):
    clients = cifar.training_clients(Federation(regime, classes), 0)
    assert clients.num_clients == 100
    assert (clients.sizes == 240).all()
    rows = rows_of(clients)
    assert len(np.unique(rows)) == len(rows)
    true = rows_for_images["train"][rows].reshape(100, 240)
    given = clients.targets.numpy().reshape(100, 240)
    names = {}
    for own, labels in zip(true, given, strict=True):
        assert len(np.unique(own)) == classes
        pairs = set(zip(own.tolist(), labels.tolist(), strict=True))
        assert len(pairs) == classes  # one label for one class
        if regime == "private":
            assert {label for _, label in pairs} == set(range(classes))
        else:
            for c, label in pairs:
                assert names.setdefault(c, label) == label
    known, _ = cifar.class_rows(0)
    assert set(true.ravel()) <= set(known[:80])


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="Invalid regime='privat'"):
        cifar.training_clients(Federation("privat", 5), 0)


def test_an_unknown_kind_of_new_clients_is_refused():
    with pytest.raises(ValueError, match="Invalid kind='unsee'.*Use kind='known' or"):
        cifar.new_clients("unsee", 0)


def orders(clients, true):
    """Each client's label of each class, (clients, 100), -1 for classes it does not hold."""
    table = np.full((clients.num_clients, 100), -1)
    for i in range(clients.num_clients):
        rows = rows_of(clients.select([i]))
        table[i, true[rows]] = clients[i][1].numpy()
    return table


def test_the_dial_renumbers_the_share_of_clients_it_says(rows_for_images):
    true = rows_for_images["train"]
    shared = orders(cifar.training_clients(Federation("groups", 5, 100, 0.0), 0), true)
    for c in range(100):
        assert len(set(shared[shared[:, c] >= 0, c])) <= 1
    assert all(set(row[row >= 0]) == set(range(5)) for row in shared)
    half = orders(cifar.training_clients(Federation("groups", 5, 100, 0.5), 0), true)
    changed = (half != shared).any(axis=1).sum()
    assert 45 <= changed <= 50  # of the 50, one in 120 draws the order it had
    assert ((half >= 0) == (shared >= 0)).all()


def test_balanced_orders_leave_no_mean_label(rows_for_images):
    clients = cifar.training_clients(Federation("balanced", 5, 80), 0)
    table = orders(clients, rows_for_images["train"])
    for column in table.T:
        numbers = np.bincount(column[column >= 0], minlength=5)
        assert (numbers == numbers[0]).all()


@pytest.mark.parametrize(
    "federation", [("shared", 20), ("private", 5), ("groups", 5, 100, 0.5), ("private", 80)]
)
def test_training_clients_are_tested_on_other_images_under_their_own_labels(
    rows_for_images, federation
):
    federation, true = Federation(*federation), rows_for_images["train"]
    train, test = cifar.training_task(federation, 0, num_clients=4)
    everyone = cifar.training_clients(federation, 0)
    trained = rows_of(everyone)
    assert (rows_of(train) == trained[: 4 * 240]).all()
    assert not set(rows_of(test)) & set(trained)
    for i in range(4):
        _, numbers = np.unique(test[i][1], return_counts=True)
        assert numbers.tolist() == [500 // federation.classes] * federation.classes
        pairs = [
            set(zip(true[rows_of(half.select([i]))], half[i][1].tolist(), strict=True))
            for half in (train, test)
        ]
        assert pairs[0] == pairs[1]


@pytest.mark.parametrize("kind", [*cifar.KINDS, "validation"])
def test_new_clients_learn_and_are_tested_on_images_of_their_own(rows_for_images, kind):
    task = cifar.new_clients(kind, 0)
    assert (task.train.sizes == 1000).all()
    assert (task.test.sizes == 500).all()
    trained = rows_of(cifar.training_clients(Federation("shared", 20), 0))
    learn, test = rows_of(task.train), rows_of(task.test)
    assert not set(learn) & set(test)
    assert not set(learn) & set(trained)
    assert not set(test) & set(trained)
    if kind in ("known", "unseen"):
        assert test.min() >= 50_000  # test images of CIFAR, which tuning never sees
    if kind == "validation":
        assert test.max() < 50_000
    for budget in cifar.BUDGETS:
        few = task.with_budget(budget).train
        for i in range(few.num_clients):
            assert (np.bincount(few[i][1]) == budget).all()
    if kind != "cifar10":
        known, _ = cifar.class_rows(0)
        held = set(rows_for_images["train"][learn])
        assert held <= set(known[80:] if kind == "unseen" else known[:80])


@pytest.mark.parametrize("settings", [s.settings for s in STUDIES], ids=[s.name for s in STUDIES])
def test_runs_that_are_matched_in_steps_take_as_many(settings):
    for setting in settings:
        config = study.config_of(setting, 0.1)
        steps = config.num_rounds * config.local_steps
        work = steps * (config.cohort_size or 1) * config.batch_size
        if setting.get("algorithm") == ["local"]:
            assert work == 20_000  # a tenth: one client of a cohort of ten
        elif setting["matching"] == "steps":
            assert work == 200_000
        elif setting.get("algorithm", [None])[0] == "fedrep":  # the head's steps count
            assert config.num_rounds * (config.local_steps + setting["algorithm"][1]) == 2000
        else:
            assert config.num_rounds == 40


def test_the_search_goes_on_until_the_best_step_size_has_neighbours():
    best = {1: 0.4, 50: 0.0125}

    def run(function, units, *, label):
        def score(setting, client_lr):
            if client_lr is None:
                return 0.1
            distance = abs(np.log2(client_lr / best[setting["local_steps"]]))
            return None if client_lr > 1 else 1 - distance / 20

        return [{"0.1": score(**unit), "0.2": 0.0} for unit in units]

    settings = [
        dict(federation=["private", 5, 100, 0.0], local_steps=tau, matching="steps")
        for tau in (1, 50)
    ]
    settings = [*settings, one_step.UNTRAINED]
    searched = SEARCH._search(settings, [study.around(0.05), study.around(0.2), None], run)
    for entry in searched[:2]:
        tried = {
            lr: max(s for s in scores.values() if s is not None)
            for lr, scores in entry["tried"].items()
        }
        chosen, inside = study.choose(tried)
        assert inside
        assert float(chosen) == best[entry["setting"]["local_steps"]]
    assert searched[2]["tried"] == {}


@pytest.mark.parametrize("largest", [0.01, 0.0])
def test_the_search_steps_down_while_all_diverge(largest):
    def run(function, units, *, label):
        return [{"0.1": None if u["client_lr"] > largest else u["client_lr"]} for u in units]

    setting = one_step.GRID[0]
    (entry,) = SEARCH._search([setting], [study.around(0.2)], run)
    tried = {float(lr): scores["0.1"] for lr, scores in entry["tried"].items()}
    assert list(tried) == [lr for lr in study.STEP_SIZES if min(tried) <= lr <= 0.4]
    if largest:  # it ends one step below the best, which is the largest that does not diverge
        assert sum(score is not None for score in tried.values()) == 2
    else:
        assert min(tried) == study.STEP_SIZES[0]


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_around_a_guess_are_three_step_sizes_the_nearest_among_them(guess):
    near = study.around(guess)
    at = study.STEP_SIZES.index(near[0])
    assert near == study.STEP_SIZES[at : at + 3]
    assert len(near) == 3
    assert min(study.STEP_SIZES, key=lambda lr: abs(lr - guess)) in near


class Stopped(Exception):
    """What ends a session."""


def in_this_process(monkeypatch, after=None):
    """Run units here instead of in workers, and stop after so many."""
    left = itertools.repeat(True) if after is None else iter([True] * after)

    def run(function, units, workers):
        for unit in units:
            if not next(left, False):
                raise Stopped
            yield unit, function(**unit), 0.5

    monkeypatch.setattr(runner, "in_parallel", run)


@pytest.fixture
def tiny(monkeypatch):
    """A study of three settings, two of them variants, whose scores are made up."""

    def tune(setting, client_lr):
        return {"0.1": None if client_lr > 0.5 else client_lr * setting["local_steps"]}

    def tune_fine_tuning(setting, client_lr, parts):
        return {part: {"20": {"0.1": 0.3, "0.2": 0.4}} for part in parts}

    def final(setting, client_lr, lrs, seed, curve):
        return {"head": [client_lr + seed, setting["local_steps"]], "curve": curve}

    for fake in (tune, tune_fine_tuning, final):
        monkeypatch.setattr(study, fake.__name__, fake)
    monkeypatch.setattr(study, "commit_of", lambda: "0")
    private, shared = ["private", 5, 100, 0.0], ["shared", 5, 100, 0.0]
    pairs = [(private, 1), (private, 2), (shared, 5)]
    settings = [dict(federation=f, local_steps=tau, matching="steps") for f, tau in pairs]
    return study.TuningStudy(
        name="tiny",
        settings=settings,
        starts=[study.around(0.1)] * 3,
        core=2,
        seeds=(0, 1),
        curves=True,
        variant_of=lambda setting: str(setting["federation"]),
        further=lambda chosen, seeds, run: {"seeds": seeds},
    )


def table_in(folder, name="tiny.json"):
    record = json.loads((folder / name).read_text())
    assert record.pop("provenance")["compute_seconds"] > 0
    return record


def test_a_study_that_was_stopped_ends_in_the_same_table(tiny, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    whole, stopped = tmp_path / "whole", 0
    whole.mkdir()
    tiny.run(whole, 1)
    (cache,) = whole.glob("*.jsonl")
    lines = cache.read_text().splitlines()
    assert len(set(lines)) == len(lines)
    for after in range(len(lines) + 1):
        folder = tmp_path / str(after)
        folder.mkdir()
        in_this_process(monkeypatch, after)
        try:
            tiny.run(folder, 1)
        except Stopped:
            stopped += 1
        in_this_process(monkeypatch, len(lines) - after)  # not one more than was left
        tiny.run(folder, 1)
        assert table_in(folder) == table_in(whole)
        assert not (folder / "tiny.partial.json").exists()
    assert stopped == len(lines)


def test_a_whole_table_is_not_replaced_by_a_part_of_one(tiny, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    tiny.run(tmp_path, 1)
    whole, lines = table_in(tmp_path), len(next(tmp_path.glob("*.jsonl")).read_text().splitlines())
    assert len(whole["final"]) == 4
    smaller = tiny._replace(settings=tiny.settings[:2], starts=tiny.starts[:2])
    for its, rows in ((tiny, 4), (smaller, 2)):
        next(tmp_path.glob("*.jsonl")).unlink()
        in_this_process(monkeypatch, lines - 8)
        with pytest.raises(Stopped):
            its._replace(core=1, variant_of=str).run(tmp_path, 1)
        assert table_in(tmp_path) == whole
        assert 0 < len(table_in(tmp_path, "tiny.partial.json")["final"]) < 4
        in_this_process(monkeypatch)
        its.run(tmp_path, 1)
        assert len(table_in(tmp_path)["final"]) == rows
        assert not (tmp_path / "tiny.partial.json").exists()


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Where trained parameters are kept, and how often training ran, which is made up."""
    calls = []

    def clients_of(setting, federation, seed):
        return None

    def train(setting, config, seed, model, clients, **options):
        calls.append(options)
        history = fl.History(round_num=np.array([1]), loss=np.ones(1), metrics={"a": np.ones(1)})
        return {"w": torch.full((2,), config.client_lr)}, history

    monkeypatch.setattr(study, "RUNS", tmp_path)
    monkeypatch.setattr(study, "_train", train)
    monkeypatch.setattr(study, "clients_of", clients_of)
    return calls


def test_nothing_is_trained_twice_but_to_be_watched(training):
    setting = one_step.GRID[0]
    first, second = (study.trained(setting, 0.1, 0)[0] for _ in range(2))
    assert torch.equal(first["w"], second["w"])
    assert len(training) == 1
    study.trained(setting, 0.2, 0)
    study.trained(setting, 0.1, 1)
    assert len(training) == 3
    _, series = study.trained(setting, 0.1, 0, eval_every=5)
    assert training[3:] == [dict(eval_every=5)]
    assert series == {"round_num": [1], "a": [1.0]}


def test_a_mean_head_of_a_run_that_diverged_is_told(rows_for_images, monkeypatch):
    def diverge(*_, **__):
        raise FloatingPointError("in round 7")

    monkeypatch.setattr(study, "trained", diverge)
    found = study.mean_head(one_step.CENTRALISED, 0.1, ["private", 5], 0)
    assert found == {"diverged": "in round 7"}


def test_a_point_where_fine_tuning_diverged_is_no_accuracy(monkeypatch):
    """Neither in the file, which is JSON, nor when it is read."""
    scores = iter([[0.5], None, [0.25]])

    def adapt_heads(params, task, lrs, seed):
        return {budget: {lr: next(scores, [0.1]) for lr in tried} for budget, tried in lrs.items()}

    def trained(setting, client_lr, seed, *, metrics, eval_every):
        return {}, {"round_num": [1, 2, 3], "accuracy": [metrics({})["accuracy"] for _ in range(3)]}

    for name, fake in dict(adapt_heads=adapt_heads, trained=trained).items():
        monkeypatch.setattr(study, name, fake)
    monkeypatch.setattr(study, "new_clients", lambda *_, **__: None)
    setting, lrs = one_step.GRID[0], {"head": {"20": 0.1}}
    row = json.loads(json.dumps(study.final(setting, 0.1, lrs, 0, True), allow_nan=False))
    assert row["curve"]["accuracy"] == [0.5, None, 0.25]
    row |= dict(setting=setting, seed=0)
    _, accuracy = table.curve({"final": [row]}, setting)
    np.testing.assert_array_equal(accuracy, [[0.5, np.nan, 0.25]])


def test_of_an_algorithms_variants_only_the_best_goes_on():
    scores = {0.01: 0.1, 0.1: 0.3, 1.0: 0.5, 10.0: 0.4}
    tuning = [
        {"setting": setting, "tried": {"0.05": {"0.1": scores[setting["algorithm"][1]]}}}
        for setting in neighbours.SETTINGS
        if setting.get("algorithm", [""])[0] == "fedprox"
    ]
    tried = {part: {"20": {"0.1": 0.2, "0.2": 0.3}} for part in neighbours.STUDY.parts}
    chosen = neighbours.STUDY._choose(
        tuning, lambda function, units, *, label: [tried] * len(units)
    )
    assert [entry["setting"]["algorithm"][1] for entry in chosen] == [1.0] * 2
    assert [entry["setting"]["federation"][0] for entry in chosen] == ["shared", "private"]
    assert chosen[0]["lrs"] == {"head": {"20": 0.2}}
    every = one_step.STUDY._choose(tuning, lambda function, units, *, label: [tried] * len(units))
    assert [entry["setting"] for entry in every] == [entry["setting"] for entry in tuning]


@pytest.mark.slow
def test_every_algorithm_trains_in_its_own_way(monkeypatch, tmp_path):
    def fake(name, split):
        rng = np.random.default_rng(0)
        labels = np.arange(50_000 if split == "train" else 10_000) % 100
        return rng.standard_normal((len(labels), *cifar.SHAPE), dtype=np.float32), labels

    monkeypatch.setattr(cifar, "load_images", functools.cache(fake))
    monkeypatch.setattr(study, "RUNS", tmp_path)
    for name, value in {"ROUNDS": 3, "MOST_STEPS": 4}.items():
        monkeypatch.setattr(study, name, value)
    shared = dict(federation=["shared", 20, 100, 0.0], local_steps=4, matching="steps")
    settings = [shared, shared | dict(federation=["pooled", 80, 1, 0.0])]
    for differs in itertools.chain(*neighbours.ALGORITHMS.values()):
        if differs.get("algorithm", [""])[0] == "fedrep":
            if differs["algorithm"][1] > 3:
                continue
            differs = differs | {"local_steps": 2}
        settings.append(shared | differs)
    bodies = [
        study.trained(setting, 0.1, 0, strategy="threads")[0]["body.0.weight"]
        for setting in settings
    ]
    for i, one in enumerate(bodies):
        for setting, other in zip(settings[:i], bodies, strict=False):
            assert not np.allclose(one, other, rtol=0, atol=1e-6), (setting, settings[i])
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".safetensors"] * len(settings)
    with pytest.raises(ValueError, match="Invalid algorithm='fedpox'"):
        study.trained(shared | dict(algorithm=["fedpox", 1.0]), 0.1, 0, strategy="threads")


def test_choose_takes_the_best_and_skips_what_diverged():
    assert study.choose({"0.1": 0.3, "0.2": 0.5, "0.4": None}) == ("0.2", True)
    assert study.choose({"0.1": 0.3, "0.2": 0.5}) == ("0.2", False)
    assert study.choose({}) == (None, True)
    with pytest.raises(ValueError, match=r"Invalid tried=\['0.1', '0.2'\].*diverged.*Add smaller"):
        study.choose({"0.2": None, "0.1": None})


def test_a_variant_that_diverges_throughout_is_passed_over():
    settings = [s for s in neighbours.SETTINGS if s.get("algorithm", [""])[0] == "fedrep"][:2]
    tuning = [
        {"setting": setting, "tried": {"0.05": {"0.1": score}}}
        for setting, score in zip(settings, (None, 0.1), strict=True)
    ]
    tried = {"head": {"20": {"0.1": 0.2}}}
    chosen = neighbours.STUDY._choose(
        tuning, lambda function, units, *, label: [tried] * len(units)
    )
    assert [entry["setting"] for entry in chosen] == settings[1:]
    with pytest.raises(ValueError, match="diverged"):
        neighbours.STUDY._choose(tuning[:1], lambda *_, **__: [])


@pytest.mark.parametrize("name", STORED)
def test_a_stored_study_is_the_one_in_the_code(name):
    record = fl.load_result(name)
    code = next(s for s in STUDIES if s.name == name)
    assert record["design"] == json.loads(json.dumps(code.design()))
    tuned = [entry["setting"] for entry in record["tuning"]]
    assert tuned == json.loads(json.dumps(list(code.settings)))[: len(tuned)]  # or a part of it
    assert len(tuned) >= code.core
    stored = [entry["setting"] for entry in record["chosen"]]
    assert all(setting in tuned for setting in stored)
    assert len(stored) == len({code.variant_of(setting) for setting in tuned})
    for entry in record["chosen"]:
        Federation(*entry["setting"]["federation"])
        if entry["client_lr"] is not None:
            study.config_of(entry["setting"], entry["client_lr"])
    seeds = record["provenance"]["seeds"]
    assert seeds[0] == study.TUNING_SEED not in seeds[1:]
    assert seeds[1:] == list(code.seeds)[: len(seeds) - 1]
    rows = [(json.dumps(row["setting"]), row["seed"]) for row in record["final"]]
    assert len(set(rows)) == len(rows)
    core = len({code.variant_of(setting) for setting in code.settings[: code.core]})
    assert len(rows) >= core * (len(seeds) - 1)


@pytest.mark.parametrize("name", STORED)
def test_no_chosen_step_size_lies_at_the_edge_of_what_was_tried(name):
    for entry in fl.load_result(name)["tuning"]:
        if entry["tried"]:
            best = {lr: study._best(scores) for lr, scores in entry["tried"].items()}
            assert study.choose(best)[1], entry["setting"]


def test_without_its_step_sizes_no_experiment_starts(tmp_path):
    for compute in (fine_tuning.compute, inside.compute):
        for chosen in (None, [], [{"setting": one_step.UNTRAINED, "client_lr": None}]):
            if chosen is not None:
                (tmp_path / "one_step.json").write_text(json.dumps({"chosen": chosen}))
            with pytest.raises(FileNotFoundError, match=r"Run python -m .* one_step first"):
                compute(tmp_path, 1)
        (tmp_path / "one_step.json").unlink()


def test_what_builds_on_a_study_takes_the_step_sizes_that_it_chose():
    looked, tuned = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("inside", "fine_tuning")
    )
    taken = [run for runs in looked["design"]["runs"].values() for run in runs.values()]
    rows = [*looked["rounds"], *looked.get("own_heads", ()), *tuned["chosen"]]
    taken += [(row["setting"], row["client_lr"]) for row in rows]
    settings, lrs = zip(*taken, strict=True)
    assert one_step.chosen_lrs(RESULTS, settings) == list(lrs)


def needs_cifar():
    try:
        cifar.load_images("cifar100", "test")
    except fl.DataError:
        pytest.skip("CIFAR is not here: set FEDLIB_DATA")


def again(setting, seed):
    record = fl.load_result("one_step")
    chosen = next(e for e in record["chosen"] if e["setting"] == setting)
    lrs = {"head": chosen["lrs"]["head"]}
    fresh = study.final(setting, chosen["client_lr"], lrs, seed, False)["head"]
    stored = next(e for e in record["final"] if e["setting"] == setting and e["seed"] == seed)
    return fresh, stored["head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        # Of the short runs, two with small step sizes: large ones amplify rounding.
        dict(federation=["private", 20, 100, 0.0], local_steps=1, matching="rounds"),
        dict(federation=["shared", 80, 100, 0.0], local_steps=2, matching="rounds"),
    ],
)
def test_stored_rows_come_out_again(setting, tmp_path, monkeypatch):
    needs_cifar()
    monkeypatch.setattr(study, "RUNS", tmp_path)
    # The shape checks of the tests cannot be compiled; the strategy does not change what comes out.
    monkeypatch.setattr(study, "trained", functools.partial(study.trained, strategy="threads"))
    fresh, stored = again(setting, 0)
    for kind in cifar.KINDS:
        for budget in map(str, cifar.BUDGETS):
            difference = np.subtract(fresh[kind][budget], stored[kind][budget])
            assert abs(difference.mean()) < 0.015
            assert np.abs(difference).max() < 0.06


def test_what_is_looked_into_is_what_was_trained():
    settings = one_step.STUDY.settings
    for federation in inside.FEDERATIONS:
        for method in inside.METHODS.values():
            assert dict(federation=list(federation), **method) in settings


# --- A comparison of one's own ----------------------------------------------------------------


def asked(*arguments):
    parser = argparse.ArgumentParser()
    comparison.add_arguments(parser)
    return comparison.study_of(parser.parse_args(arguments), list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--local-steps 30", "--local-steps=30.*Use --gradient-steps 1980 or 2010, or .*steps 25"),
        ("--local-steps 1", "--local-steps=1: one step is what all are compared with"),
        ("--local-steps 0", "--local-steps=0: must be at least 1"),
        ("--classes 81", "--classes=81: training clients hold 2 to 80 classes. Use --classes 80"),
        ("--classes 2 --clients 100", "3 clients would share the 350 images.*Use --clients 80 or"),
        ("--classes 5 --images 4", "--images=4: fewer than 5 classes. Use --images 5 or more"),
        ("--classes 2 --images 800", "1 clients would share the 350.*Use --images 700 or less"),
        ("--gradient-steps 0", "--gradient-steps=0: must be at least 1"),
        ("--cohort 101", "--cohort=101: only 100 clients. Use --cohort 100 or less"),
        ("--batch 300", "--batch=300: a client has 240 images. Use --batch 240 or less"),
        ("--budget 101", "--budget=101: new clients have 100 images of a class"),
        ("--regime privat", "--regime='privat'.*Use one of shared, private"),
        ("--network ResNet", "network='ResNet'.*Use network='CNN' or"),
        ("--network nets.py:f", "no such file"),
        ("--data mnist", "data='mnist'"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_with_what_can(arguments, message):
    with pytest.raises(ValueError, match=message):
        asked(*arguments.split())


def test_what_is_not_asked_for_is_as_in_the_book():
    study_ = asked("--local-steps", "50")
    assert study_.settings[0] == one_step.UNTRAINED
    for setting in study_.settings[1:]:
        ours = study.config_of(setting, 0.1)
        books = {k: setting[k] for k in ("federation", "local_steps", "matching")}
        assert books in one_step.GRID
        assert study.config_of(books, 0.1) == ours


def test_arguments_reach_the_runs():
    arguments = "--classes 2 10 --local-steps 4 25 --regime private --images 200 --cohort 4"
    study_ = asked(*arguments.split(), "--batch", "20", "--gradient-steps", "300", "--seeds", "3")
    assert len(study_.settings) == 1 + 2 * 3
    assert [s["federation"][2] for s in study_.settings[1:]] == [100] * 6
    for setting in study_.settings[1:]:
        config = study.config_of(setting, 0.1)
        assert config.num_rounds * config.local_steps == 300
        assert (config.cohort_size, config.batch_size, setting["images"]) == (4, 20, 200)
    assert list(study_.seeds) == [0, 1, 2]
    assert shlex.split(study_.command)[:4] == ["python", "-m", "studies", "one_step"]
    assert shlex.split(study_.command)[4:-6] == arguments.split()


def test_two_classes_take_as_many_clients_as_there_are_images_for():
    assert {s["federation"][2] for s in asked("--classes", "2").settings[1:]} == {80}


NETWORK = """
import fedlib as fl

def net(image_shape, num_outputs, *, seed):
    return fl.MLP(image_shape, num_outputs, hidden=(8,), seed=seed)
"""
DATA = """
import numpy as np

def data(split):
    each = 40 if split == "train" else 10
    labels = np.repeat(np.arange(50), each)
    rng = np.random.default_rng(each)
    return rng.standard_normal((len(labels), 1, 4, 4)), labels
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network and a data set of one's own, and a folder for runs."""
    (tmp_path / "own_net.py").write_text(NETWORK)
    (tmp_path / "own_data.py").write_text(DATA)
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    cifar.load_images.cache_clear()
    yield f"{tmp_path}/own_net.py:net", f"{tmp_path}/own_data.py:data"
    for name in ("own_net", "own_data"):
        sys.modules.pop(name, None)


def test_a_comparison_on_data_and_a_network_of_ones_own_gives_table_and_plot(
    own, tmp_path, monkeypatch, capsys
):
    network, data = own
    in_this_process(monkeypatch)
    monkeypatch.setattr(cifar, "HEAD", dict(steps=2, batch_size=5))
    monkeypatch.setattr(study, "HEAD_LRS", [0.1, 0.2])
    asked_for = f"--network {network} --data {data} --images 10 --local-steps 2 --batch 5"
    study_ = asked(*asked_for.split(), *["--gradient-steps", "4", "--budget", "4", "--seeds", "2"])
    file = study_.run(tmp_path, 1)
    comparison.show(study_, file)
    printed = capsys.readouterr().out
    assert "Accuracy on new clients, unseen, 4 per class" in printed
    assert "private, C = 5" in printed
    assert file.with_suffix(".png").stat().st_size > 5000
    assert fl.load_result(file)["provenance"]["command"] == study_.command


def test_another_network_is_another_run(own, tmp_path):
    network, data = own
    setting = asked(
        *f"--network {network} --data {data} --images 10 --local-steps 2 --batch 5".split(),
        *["--gradient-steps", "4", "--budget", "4"],
    ).settings[1]
    first = study.trained(setting, 0.1, 0)[0]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    path = tmp_path / "own_net.py"
    path.write_text(NETWORK.replace("hidden=(8,)", "hidden=(8, 8)"))
    sys.modules.pop("own_net")
    reach._module.cache_clear()
    reach._reached.cache_clear()
    second = study.trained(setting, 0.1, 0)[0]
    assert first.keys() != second.keys()
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_runs_are_kept_in_the_checkout_wherever_one_stands():
    assert Path(study.__file__).parent.parent / "_build" / "runs" == study.RUNS
