"""The benchmark: contestants do the same work, and one that fails is reported, with the reason."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__, runner
from benchmarks.profile import CATEGORIES, STRATEGIES, bytes_of, flops_of, profile
from benchmarks.runner import BASELINE, CONTESTANTS, MARKERS, Setting
from benchmarks.work import GROWTH, QUICK, WORKLOADS, make

RESULT = Path(__file__).parent.parent / "book" / "results" / "benchmarks.json"
NAMES = sorted({setting.name for setting in CONTESTANTS})

FAKE = """
import numpy as np
from benchmarks.contestants._common import Clock, Work, arguments

options = arguments()
work = Work(options.work)
# --- user code ---
def one_round(t):
    '''Move, without a look at the data.'''
    {body}


params = dict(work.start)
# --- end of user code ---
Clock(options).loop(one_round, lambda: params)
"""
MOVE = "params.update({name: p + {by} for name, p in params.items()})"


@pytest.mark.parametrize("name", NAMES)
def test_every_contestant_has_a_file_its_requirements_and_user_code(name):
    assert runner.lines_of_user_code(runner.FOLDER / f"{name}.py") > 5
    pinned = runner.versions(name)
    assert set(pinned) >= {"numpy", "psutil"} or name in ("fedlib", "plain")
    assert all(version.strip() == version for version in pinned.values())


def test_files_and_contestants_are_the_same():
    files = {path.stem for path in runner.FOLDER.glob("[a-z]*.py")}
    assert files == set(NAMES)
    assert {path.stem for path in (runner.FOLDER.parent / "requirements").glob("*.txt")} == files


def test_user_code_is_counted_without_comments_blanks_and_docstrings(tmp_path):
    file, (first, last) = tmp_path / "x.py", MARKERS
    file.write_text(
        f"before = 0\n{first}\ndef f():\n    '''One.\n\n    Two.\n    '''\n    # why\n\n"
        f"    return (\n        1\n    )  # three lines\n\n\n{last}\nafter = 1\n"
    )
    assert runner.lines_of_user_code(file) == 4


def test_quick_work_is_tiny_and_growth_changes_one_number_at_a_time():
    assert QUICK.keys() == WORKLOADS.keys()
    assert all(work.num_clients * work.size <= 100 for work in QUICK.values())
    for sweep in GROWTH.values():
        assert all(work.num_clients >= work.cohort_size for work in sweep.values())
        fields = [tuple(vars(work).items()) for work in sweep.values()]
        assert all(len(set(one) - set(other)) <= 1 for one in fields for other in fields)


@pytest.mark.parametrize(
    "name", ["LIN", *(pytest.param(n, marks=pytest.mark.slow) for n in WORKLOADS if n != "LIN")]
)
def test_fedlib_and_the_plain_loop_agree_to_rounding(tmp_path, name):
    make(QUICK[name], tmp_path / "work.npz")
    fedlib = Setting("fedlib", "loop")
    figures = runner.run(tmp_path / "work.npz", [fedlib], repeats=1, rounds=1, seconds=0)
    assert figures.keys() == {str(BASELINE), str(fedlib)}
    assert figures[str(fedlib)]["difference"]["update"] < 1e-4
    assert figures[str(fedlib)]["seconds"] > 0
    assert figures[str(fedlib)]["times_as_fast_as"].keys() == {"best plain"}


def test_a_contestant_that_fails_is_reported_with_the_reason(tmp_path, monkeypatch):
    folder, requirements = tmp_path / "contestants", tmp_path / "requirements"
    folder.mkdir()
    requirements.mkdir()
    bodies = {
        "plain": MOVE.replace("{by}", "1.0"),
        "same": MOVE.replace("{by}", "1.0001"),
        "idle": "pass",
        "crash": "raise OSError('the disk is on fire')",
        "absent": "pass",
    }
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(FAKE.replace("{body}", body))
        (requirements / f"{name}.txt").write_text("# nothing\n")

    def python_of(name, **kwargs):
        if name == "absent":
            with monkeypatch.context() as patch:
                failed = subprocess.CompletedProcess([], 1, "", "trying\nERROR: no version fits\n")
                patch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
                return original(name, **kwargs)
        return original("plain", **kwargs)

    original = runner.python_of
    monkeypatch.setattr(runner, "python_of", python_of)
    make(QUICK["LIN"], tmp_path / "work.npz")
    figures = runner.run(
        tmp_path / "work.npz",
        [Setting(name, "any") for name in bodies],
        repeats=2,
        rounds=1,
        seconds=0,
        folder=folder,
        environments=tmp_path / "environments",
    )
    assert figures["same any, 1 thread"]["rounds"] == 2
    assert figures["same any, 1 thread"]["lines"] == 3
    assert "best peer" in figures["same any, 1 thread"]["times_as_fast_as"]
    assert figures["idle any, 1 thread"]["failed"].startswith("disagrees after two rounds")
    crash = figures["crash any, 1 thread"]
    assert crash == {"failed": "crashed: OSError: the disk is on fire"}
    absent = figures["absent any, 1 thread"]
    assert absent == {"failed": "does not install: ERROR: no version fits"}
    assert "the disk is on fire" in runner.table(figures)


def test_flops_and_bytes_are_those_counted_by_hand():
    work = WORKLOADS["LIN"]
    (d,), k, b = work.shape, work.hidden, work.batch_size
    # Forward: B^T x and <w, .>; backward: the gradients of w, of its inputs, and of B.
    a_step = 2 * b * (d * k + k + k + k + d * k)
    assert flops_of(work) == 100 * 10 * a_step
    numbers = 5 * (d * k + k) + k + b * (d + 1)
    assert bytes_of(work) == 100 * 10 * 4 * numbers
    assert flops_of(WORKLOADS["IMG"]) == 50 * flops_of(WORKLOADS["IMG1"])
    merged = 4 * (5 * (d * k + k) + k + 1000 * b * (d + 1))
    assert bytes_of(work, merged=True) == merged


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_parts_of_a_round_add_up_to_it(name):
    assert STRATEGIES.keys() == WORKLOADS.keys()
    figures = profile(QUICK[name], STRATEGIES[name], repeats=1)
    assert figures.keys() == {"seconds", "categories", "flops", "bytes"}
    parts = figures["categories"]
    assert list(parts) == CATEGORIES
    assert sum(parts.values()) == pytest.approx(figures["seconds"])
    assert all(seconds >= 0 for seconds in parts.values())
    convolves = name.startswith("IMG")
    assert (parts["convolution"] > 0) == (parts["pooling"] > 0) == convolves
    assert parts["matrix product"] > 0
    assert parts["pointwise and rest"] > 0


@pytest.mark.slow
def test_a_quick_run_of_profile_and_scale_is_complete(tmp_path, monkeypatch, capsys):
    output = tmp_path / "quick.json"
    options = ["--quick", "--only", "fedlib", "--work", "profile", "scale", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *options])
    __main__.main()
    record = json.loads(output.read_text())
    assert record["work"] == {}
    complete(record)
    assert "efficiency" in capsys.readouterr().out


def complete(record):
    assert record["profile"].keys() == STRATEGIES.keys()
    ranks, clients, cohort = (record["scale"][name] for name in ("ranks", "clients", "cohort"))
    assert ranks.keys() == {"1", "2", "efficiency", "difference"}
    assert ranks["difference"] < 1e-5
    assert 0 < ranks["efficiency"] < 2
    assert len(clients) == len(cohort) == 3
    for figures in [ranks["1"], ranks["2"], *clients.values(), *cohort.values()]:
        assert figures["seconds"] > 0
    most = max(clients, key=int), max(cohort, key=int)
    assert clients[most[0]] == cohort[most[1]]
    sizes = [figures["bytes_on_disk"] for figures in clients.values()]
    assert len(set(sizes)) == 3
    assert all("anonymous_megabytes" in figures for figures in clients.values())


def test_the_stored_result_is_complete():
    record = json.loads(RESULT.read_text())
    assert record["work"].keys() == WORKLOADS.keys()
    assert record["growth"].keys() == GROWTH.keys()
    assert record["peers"].keys() == set(NAMES) - {"fedlib", "plain"}
    for figures in record["work"].values():
        assert {name.split()[0] for name in figures} == set(NAMES)
        assert all("failed" in f or f["seconds"] > 0 for f in figures.values())
        assert runner.table(figures)
    complete(record)
