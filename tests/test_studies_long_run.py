"""The long run: its queue, its controls, its scores; and that it stops and goes on anywhere."""

import json
import multiprocessing
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import fedlib as fl
from fedlib.fedavg import FedAvgConfig, run_round
from fedlib.stored import PROVENANCE
from studies import federations as cifar
from studies import long_run as study
from studies.federations import Federation
from studies.long_run import Run

PRIVATE, SHARED = Federation("private", 5), Federation("shared", 5)
LINES = ("train_seconds", "score_seconds", "wall_seconds", "commit")


@cache
def images(name, split):
    """Tiny random images, each like no other, in place of CIFAR's."""
    num_classes, size = int(name.removeprefix("cifar")), 50_000 if split == "train" else 10_000
    rng = np.random.default_rng(size + num_classes)
    labels = rng.permutation(np.arange(size) % num_classes)
    return rng.random((size, *cifar.SHAPE), dtype=np.float32), labels


SMALL = [
    (cifar, "SHAPE", (3, 4, 4)),
    (cifar, "load_images", images),
    (cifar, "HEAD", dict(steps=3, batch_size=50)),
    (cifar, "ALL", dict(steps=3, batch_size=10, strategy="stacked")),
    (study, "WIDTH", 2),
    (study, "NEW_CLIENTS", 2),
    (study, "FEW_CLIENTS", 2),
    (study, "COMPILED", "stacked"),
    (study, "POINTS", [50, 100, 150]),
    (study, "ALL_POINTS", (100,)),
    (study, "HEAD_LRS", [0.1, 1.0]),
    (study, "ALL_LRS", [0.01, 0.1]),
    (study, "STRENGTHS", [0.01, 0.1]),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for place, name, value in SMALL:
        monkeypatch.setattr(place, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    study.tasks_of.cache_clear()


def what_counts(rows):
    return [{k: v for k, v in row.items() if k not in LINES} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# --- The queue --------------------------------------------------------------------------------


def test_three_seeds_everywhere_come_before_five_anywhere():
    seeds = [run.seed for run in study.plan([]) if run.seed not in study.TUNING_SEEDS]
    three = [seed in study.SEEDS[:3] for seed in seeds]
    assert three == sorted(three, reverse=True)
    assert not set(study.SEEDS) & set(study.TUNING_SEEDS)


def test_every_run_has_a_folder_of_its_own_and_enough_images():
    runs = study.plan([])
    assert len({run.name for run in runs}) == len(runs)
    for federation in {run.federation for run in runs if run.variant != "untrained"}:
        clients = cifar.training_clients(federation, 0)
        assert clients.num_clients == federation.num_clients
        assert (clients.sizes == 240).all()


def rows_for(federation, tau, worth, steps):
    """Rows of tuning runs whose head does as well as ``worth`` says, and the probe the opposite."""
    for lr, by_seed in worth.items():
        for seed, value in zip(study.TUNING_SEEDS, by_seed, strict=True):
            row = Run(federation, tau, lr, seed).fields | {"steps": steps}
            if value is None:
                yield row | {"diverged": "in round 7"}
            else:
                part = {"validation": [None, value]}
                yield row | {"head": part, "probe": {"validation": [0.0, 1 - value]}}


def test_step_sizes_for_a_horizon_are_best_on_both_tuning_seeds_validation_clients(monkeypatch):
    monkeypatch.setattr(study, "GRID", {1: [0.1, 0.2, 0.4]})
    monkeypatch.setattr(study, "HORIZONS", (50, 100))
    early = {0.1: (0.5, 0.2), 0.2: (0.3, 0.5), 0.4: (None, 0.7)}  # a run that diverged counts 0
    late = {0.1: (0.5, 0.5), 0.2: (0.3, 0.4), 0.4: (None, 0.3)}
    rows = [*rows_for(PRIVATE, 1, early, 50), *rows_for(PRIVATE, 1, late, 100)]
    grid = study.GRID[1]
    assert study.best_step_size(rows, PRIVATE, 1, grid, 100, "head") == 0.1
    assert study.best_step_size(rows, PRIVATE, 1, grid, 50, "head") == 0.2
    assert study.tuned(rows, PRIVATE, 1) == [0.1, 0.2]
    assert study.tuned(rows[1:], PRIVATE, 1) == []  # one is not there yet
    assert study.tuned(rows, SHARED, 1) == []


# --- The controls -----------------------------------------------------------------------------


def config(**differs):
    return FedAvgConfig(
        **dict(num_rounds=6, local_steps=1, cohort_size=10, batch_size=10, client_lr=0.1) | differs
    )


def trained(tmp_path, variant, *, tau=1, steps=50, federation=PRIVATE):
    run = Run(federation, tau, 0.1, 0, variant)
    clients, model = study.clients_of(run), cifar.model_for(federation, 0, width=2)
    file = tmp_path / f"{run.name}.safetensors"
    return study.train(run, steps, clients, model, file), clients, model


@pytest.mark.parametrize("tau", [1, 50])
def test_a_plain_run_is_fedavg_with_as_many_gradient_steps(tmp_path, tau):
    params, clients, model = trained(tmp_path, "plain", tau=tau, steps=100)
    rule = config(num_rounds=100 // tau, local_steps=tau)
    asked = dict(seed=0, progress=False)
    if tau > 1:
        asked["strategy"] = "stacked"
    assert same(params, fl.run_fedavg(model, clients, rule, **asked).params)


@pytest.mark.parametrize("tau", [1, 50])
def test_without_its_flips_and_shifts_the_augmented_run_is_the_plain_one(
    tmp_path, monkeypatch, tau
):
    monkeypatch.setattr(study, "augment", lambda images, rng: images)
    plain, _, _ = trained(tmp_path, "plain", tau=tau)
    augmented, _, _ = trained(tmp_path, "augmented", tau=tau)
    for name, p in plain.items():
        torch.testing.assert_close(augmented[name], p, rtol=1e-4, atol=1e-6)


def test_an_augmented_image_is_a_shift_of_itself_or_its_mirror_image():
    rng = np.random.default_rng(0)
    before = torch.as_tensor(rng.random((200, 3, 5, 6)))
    after = study.augment(before, rng)
    seen = set()
    for old, new in zip(before, after, strict=True):
        wide = np.pad(old.numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
        views = {
            (flip, down, right): wide[:, down : down + 5, right : right + 6]
            if not flip
            else np.pad(old.numpy()[:, :, ::-1], ((0, 0), (2, 2), (2, 2)), mode="edge")[
                :, down : down + 5, right : right + 6
            ]
            for flip in (False, True)
            for down in range(5)
            for right in range(5)
        }
        found = [key for key, view in views.items() if np.array_equal(view, new.numpy())]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 40  # of 50, all alike


def test_one_step_on_the_kept_cohort_of_one_client_is_fedavg(tmp_path, monkeypatch):
    """Its clients and batches are FedAvg's; with nobody to average with, so is its result."""
    monkeypatch.setattr(study, "COHORT_SIZE", 1)
    fedavg, _, _ = trained(tmp_path, "plain", tau=50, steps=100)
    kept, _, _ = trained(tmp_path, "kept_cohort", steps=100)
    for name, p in fedavg.items():
        torch.testing.assert_close(kept[name], p, rtol=1e-3, atol=1e-5)


def test_a_cooled_runs_step_size_falls_to_zero_at_its_end(tmp_path):
    cooled, clients, model = trained(tmp_path, "cooled", steps=100)
    params, last = fl.params_of(model), study.POINTS[-1]
    for t in range(100):
        now = replace(config(), client_lr=0.1 * (1 - t / last))
        rng = np.random.default_rng([0, t])
        params, _ = run_round(model, params, clients, now, rng=rng)
    for name, p in params.items():
        torch.testing.assert_close(cooled[name], p, rtol=1e-4, atol=1e-6)
    assert study.points_of(Run(PRIVATE, 1, 0.1, 0, "cooled"), 10**6)[-1] == last


def test_weight_decay_is_torchs():
    rule, p = study.decaying(0.3), torch.randn(4, generator=torch.Generator().manual_seed(0))
    ours, theirs, state = [p], p.clone().requires_grad_(), rule.init([p], None)
    optimiser = torch.optim.SGD([theirs], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        ours, state = rule.update(ours, [ours[0] ** 2], state, 0.1)
        theirs.grad = theirs.detach() ** 2
        optimiser.step()
    torch.testing.assert_close(ours[0], theirs.detach())


@pytest.mark.parametrize(("variant", "tau"), [("own_heads", 1), ("fedrep", 50)])
def test_own_heads_are_kept_by_their_clients_and_judged_on_them(tmp_path, variant, tau):
    state, clients, model = trained(tmp_path, variant, tau=tau, steps=100)
    heads = state["own.head.weight"]
    assert heads.shape == (100, 5, 64)
    start = fl.params_of(model)
    moved = (heads != start["head.weight"]).flatten(1).any(1)
    # Each of 50 rounds draws 10 clients if a round is a step on the head and one on the body.
    assert moved.float().mean() > (0.9 if variant == "own_heads" else 0.1)
    assert torch.equal(state["head.weight"], start["head.weight"])
    assert not torch.equal(state["body.0.weight"], start["body.0.weight"])
    personal = [
        {n: state[f"own.{n}"][i] if n.startswith("head") else state[n] for n in start}
        for i in range(100)
    ]
    found = study.fitted(Run(PRIVATE, tau, 0.1, 0, variant), state, clients, model)
    assert found["accuracy"] == round(fl.evaluate(model, personal, clients).mean(), 4)
    assert set(found) == {"accuracy", "loss"}


def test_spoilt_labels_are_the_clients_own_and_as_many_as_private_orders_hide():
    run = Run(SHARED, 1, 0.1, 0, "noisy")
    clean, spoilt = cifar.training_clients(SHARED, 0), study.clients_of(run)
    private = cifar.training_clients(PRIVATE, 0)
    hidden = 0
    for c in range(80):
        mine = private.targets[clean.targets == c]
        hidden += len(mine) - int(torch.bincount(mine).max()) if len(mine) else 0
    wrong = (spoilt.targets != clean.targets).double().mean()
    assert abs(wrong - hidden / 24_000) < 0.01
    assert torch.equal(spoilt.inputs, clean.inputs)
    for i in range(100):
        assert set(spoilt[i][1].tolist()) <= set(clean[i][1].tolist())
    assert torch.equal(study.clients_of(run).targets, spoilt.targets)


@pytest.mark.slow
def test_every_control_is_known_and_others_are_refused(tmp_path):
    for variant, regime, tau in study.CONTROLS:
        params, _, _ = trained(tmp_path, variant, tau=tau, federation=Federation(regime, 5))
        assert all(p.isfinite().all() for p in params.values())
    with pytest.raises(ValueError, match="Invalid variant='cold'"):
        trained(tmp_path, "cold")


# --- The scores -------------------------------------------------------------------------------


def test_agreement_with_other_clients_by_counting():
    rng = np.random.default_rng(1)
    sizes = np.array([4, 6, 5, 3])
    classes = rng.integers(0, 4, size=18)
    client = np.repeat(np.arange(4), sizes)
    order = rng.permuted(np.tile(np.arange(4), (4, 1)), axis=1)
    labels, predicted = order[client, classes], rng.integers(0, 4, size=18)
    shares = []
    for c, i, p in zip(classes, client, predicted, strict=True):
        others = [j for j in range(4) if j != i and c in classes[client == j]]
        if others:
            shares.append(np.mean([order[j, c] == p for j in others]))
    found = study.agreement(predicted, labels, classes, sizes)
    assert found == pytest.approx(np.mean(shares))
    classes[0] = 9  # which nobody else holds: left out
    labels[0] = 0
    assert np.isfinite(study.agreement(predicted, labels, classes, sizes))


def test_validation_clients_are_tested_on_images_that_nobody_else_meets():
    tasks = study.tasks_of(0)

    def kinds_of(clients):
        return {image.numpy().tobytes() for image in clients.inputs}

    alone = kinds_of(tasks["validation"].test)
    others = cifar.training_clients(PRIVATE, 0)
    assert not alone & kinds_of(others)
    assert not alone & kinds_of(tasks["validation"].train)
    for kind in study.KINDS:
        assert not alone & (kinds_of(tasks[kind].train) | kinds_of(tasks[kind].test))


def test_a_body_that_is_dead_is_a_result():
    model = cifar.CNN(cifar.SHAPE, 1, width=2)
    params = {name: torch.zeros_like(p) for name, p in fl.params_of(model).items()}
    assert study.represented(params, 0) == {"features": {"rms": 0.0, "dead_images": 1.0}}


def test_features_that_overflow_are_a_divergence():
    model = cifar.CNN(cifar.SHAPE, 1, width=2)
    params = {name: torch.full_like(p, 1e30) for name, p in fl.params_of(model).items()}
    with pytest.raises(FloatingPointError, match="features are not finite"):
        study.represented(params, 0)


# --- The workshop -----------------------------------------------------------------------------

RUNS = [
    Run(Federation("untrained", 80), 1, 0.0, 0, "untrained"),
    Run(PRIVATE, 50, 0.1, 0),
    Run(SHARED, 1, 0.1, 0),
]


def worker(folder):
    """Work in a process of its own, which is made to be killed."""
    for place, name, value in SMALL:
        setattr(place, name, value)
    study.work(folder, 150, RUNS)


@pytest.mark.slow
def test_a_grid_that_is_stopped_goes_on_to_the_same_rows(tmp_path):
    folder, file = tmp_path / "stopped", tmp_path / "stopped" / RUNS[1].name
    context = multiprocessing.get_context("spawn")
    moments = [lambda: (file / "run.safetensors").exists(), lambda: (file / "rows.jsonl").exists()]
    for moment, stop in zip(moments, ("kill", "terminate"), strict=True):
        process = context.Process(target=worker, args=(folder,))
        process.start()
        while not moment() and process.is_alive():
            time.sleep(0.01)
        getattr(process, stop)()
        process.join()
    with (file / "rows.jsonl").open("a") as torn:
        torn.write('{"steps": 10')
    assert study.work(folder, 150, RUNS) == []
    assert study.work(tmp_path / "whole", 150, RUNS) == []
    for run in RUNS:
        rows = study.rows_of(run, folder)
        assert [row["steps"] for row in rows] == study.points_of(run, 150)
        assert what_counts(rows) == what_counts(study.rows_of(run, tmp_path / "whole"))
    first = study.rows_of(RUNS[1], folder)[0]
    assert set(first["head"]) == {"validation", *study.KINDS}
    assert first["training"]["others_labels_by_chance"] == 0.2
    assert ["all" in row for row in study.rows_of(RUNS[2], folder)] == [False, True, False]
    # A finished grid is a table; so is a part of it.
    for part in ("whole", "stopped"):
        study.table(tmp_path / part, tmp_path)
        record = json.loads((tmp_path / "long_run.json").read_text())
        assert len(record["rows"]) == 7
        assert set(record["provenance"]) == {*PROVENANCE, "compute_seconds"}
        assert record["provenance"]["seeds"] == [0]
        (folder / RUNS[2].name / "rows.jsonl").unlink()
        study.table(folder, tmp_path)
        assert len(json.loads((tmp_path / "long_run.json").read_text())["rows"]) == 4
        study.work(folder, 150, RUNS)  # scored once more, not trained
        assert what_counts(study.rows_of(RUNS[2], folder)) == what_counts(
            study.rows_of(RUNS[2], tmp_path / "whole")
        )
    # And it can be carried further.
    study.work(folder, 300, RUNS[2:])
    assert [row["steps"] for row in study.rows_of(RUNS[2], folder)] == [50, 100, 150, 300]
    assert "3 done" not in study.status(folder, 300)


def test_a_run_is_worked_on_by_one_process_at_a_time(tmp_path):
    with study.claimed(RUNS[0], tmp_path) as mine:
        assert mine
        with study.claimed(RUNS[0], tmp_path) as too:
            assert not too
        assert study.work(tmp_path, 150, RUNS[:1]) == []
        assert study.rows_of(RUNS[0], tmp_path) == []
        assert " running " in study.status(tmp_path, 150)
    study.work(tmp_path, 150, RUNS[:1])
    assert len(study.rows_of(RUNS[0], tmp_path)) == 1


def test_a_run_that_diverges_says_so_and_is_over(tmp_path):
    run = Run(PRIVATE, 1, 1e20, 0)
    for _ in range(2):
        study.work(tmp_path, 150, [run])
        (row,) = study.rows_of(run, tmp_path)
        assert row["steps"] == 50
        assert row["diverged"].startswith("Training diverged in round ")
        assert "1e+20" in row["diverged"]
    study.table(tmp_path, tmp_path)
    assert "diverged" in json.loads((tmp_path / "long_run.json").read_text())["rows"][0]


def test_a_fault_in_one_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    broken = Run(PRIVATE, 1, 0.1, 7)
    real = study.carry_on

    def carry_on(run, *rest):
        if run == broken:
            raise ZeroDivisionError("here")
        real(run, *rest)

    monkeypatch.setattr(study, "carry_on", carry_on)
    assert study.work(tmp_path, 150, [broken, RUNS[0]]) == [broken]
    assert "ZeroDivisionError: here" in capsys.readouterr().err
    assert len(study.rows_of(RUNS[0], tmp_path)) == 1
