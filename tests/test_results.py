"""Every stored result says how it was made; and running experiments stops and resumes."""

import importlib
import json
import os
import signal
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest
import torch

import fedlib as fl
from fedlib.stored import PROVENANCE
from studies import reach, record, runner, tuning
from studies.runner import Runner

FOLDER = Path(__file__).parent.parent / "book" / "results"
RESULTS = sorted(path for path in FOLDER.glob("*.json") if ".partial" not in path.suffixes)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_provenance_is_complete(path):
    how = fl.load_result(path.stem)["provenance"]
    assert set(how) - {"compute_seconds"} == set(PROVENANCE)
    timed = path.stem == "benchmarks"  # on one draw of the work; its spread is that of the clock
    commands = {"benchmarks": "python -m benchmarks", "long_run": "python -m studies long_run"}
    command = commands.get(path.stem, f"python -m studies {path.stem}")
    before = f"python -m fedlib.experiments {path.stem}"  # where the studies were
    assert how["command"].startswith((command, before))
    assert "dirty" not in how["commit"]
    assert "unknown" not in how["commit"]
    assert how["wall_seconds"] > 0
    assert {"python", "torch", "numpy"} <= set(how["versions"])
    assert len(how["seeds"]) >= (1 if timed else 3)


def test_the_commit_is_that_of_the_librarys_code(tmp_path):
    def git(*asked):
        who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *asked], check=True, capture_output=True, text=True
        ).stdout.strip()

    folder = tmp_path / "library"
    folder.mkdir()
    assert record.commit_of(folder).startswith("unknown")
    git("init")
    (folder / "code.py").write_text("1")
    (tmp_path / "result.json").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    (tmp_path / "result.json").write_text("2")
    (tmp_path / "new.json").write_text("2")
    assert record.commit_of(folder) == git("rev-parse", "--short", "HEAD")
    (folder / "code.py").write_text("2")
    assert record.commit_of(folder) == git("rev-parse", "--short", "HEAD") + "-dirty"


def test_a_run_from_the_cache_took_a_second_as_well():
    how = record.provenance("x", seeds=[0], wall_seconds=0.01, commit="0")
    assert how["wall_seconds"] == 1
    assert set(how) == set(PROVENANCE)


def test_there_are_results():
    assert RESULTS


def test_an_unknown_result_says_what_there_is():
    with pytest.raises(FileNotFoundError, match='Invalid name="nothing".*Use one of .*puzzle'):
        fl.load_result("nothing")


def square(number):
    return {"square": number * number}


def test_units_are_computed_once_and_survive_a_torn_line(tmp_path):
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in range(4)]
    kept = dict(function="square", unit={"number": 2}, result={"square": "kept"}, seconds=1)
    kept["code"] = reach.digest(square)
    cache.write_text(json.dumps(kept) + '\n{"function": "square", "unit": {"num')
    results = Runner(cache, 1)(square, units, label="test")
    assert [r["square"] for r in results] == [0, 1, "kept", 9]
    again = Runner(cache, 1)(square, units, label="test")
    assert again == results


def cube(number):
    return {"cube": number**3}


def test_two_functions_with_the_same_units_and_one_cache_keep_apart(tmp_path):
    run, units = Runner(tmp_path / "cache.jsonl", 1), [{"number": 2}]
    for _ in range(2):
        assert run(square, units, label="test") == [{"square": 4}]
        assert run(cube, units, label="test") == [{"cube": 8}]
    lines = map(json.loads, run.cache.read_text().splitlines())
    assert [line["function"] for line in lines] == ["square", "cube"]


def test_what_is_finished_starts_no_process(tmp_path, monkeypatch):
    run = Runner(tmp_path / "cache.jsonl", 1)
    results = run(square, [{"number": 3}], label="test")
    monkeypatch.setattr(runner, "in_parallel", None)
    assert run(square, [{"number": 3}], label="test") == results
    assert run(square, [], label="test") == []


def fall(number):
    """Another number is a worker's end."""
    if number == 1:
        raise ZeroDivisionError("by one")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number, "threads": torch.get_num_threads()}


def kept(cache):
    return [json.loads(line)["result"] for line in cache.read_text().splitlines()]


def test_a_killed_worker_ends_the_run_and_what_is_finished_stays(tmp_path):
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in (0, 2, 3)]
    with pytest.raises(RuntimeError, match="A worker was killed.*Use fewer --workers"):
        Runner(cache, 1)(fall, units, label="test")
    assert kept(cache) == [{"number": 0, "threads": 1}]


def test_a_unit_that_raises_is_named_and_nothing_further_begins(tmp_path):
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in (0, 1, 3, 4)]
    with pytest.raises(ZeroDivisionError, match="by one") as caught:
        Runner(cache, 1)(fall, units, label="test")
    assert "In fall(**{'number': 1})." in caught.value.__notes__
    assert [result["number"] for result in kept(cache)] == [0]


class AtOnce(futures.Executor):
    """Runs what is submitted at once, in this process."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *arguments):
        future = futures.Future()
        try:
            future.set_result(function(*arguments))
        except ArithmeticError as error:
            future.set_exception(error)
        return future


def test_what_ran_beside_a_failure_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ProcessPoolExecutor", AtOnce)
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in (1, 5, 6, 7)]
    with pytest.raises(ZeroDivisionError):
        Runner(cache, 2)(fall, units, label="test")
    assert [result["number"] for result in kept(cache)] == [5]


def test_code_that_changed_while_a_study_runs_is_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, cache = tmp_path / "edited.py", tmp_path / "cache.jsonl"
    file.write_text("def f(x):\n    return {'x': x}\n")
    edited, run = importlib.import_module("edited"), Runner(cache, 1)
    assert run(edited.f, [{"x": 1}], label="test") == [{"x": 1}]
    file.write_text("def f(x):\n    return {'x': -x}\n")
    with pytest.raises(RuntimeError, match="code changed while this ran. Start it again"):
        run(edited.f, [{"x": 1}, {"x": 2}], label="test")
    assert kept(cache) == [{"x": 1}]


PARTS = {
    "beside.py": "SLOPE, C = 2, 1\nCOLOUR = 'red'\n\ndef line(x):\n    return SLOPE * x + C\n",
    "studied.py": '''"""Says this."""
import beside
from beside import line

class Unit:
    """And this."""
    def value(self, x):
        return line(x)

def f(x):
    return {"x": Unit().value(x)}

def drawn():
    return beside.COLOUR
''',
}


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("beside.py", "SLOPE * x", "SLOPE - x", True),  # a function that another file imports
        ("beside.py", "2, 1", "2, 3", True),  # a constant that it reads
        ("studied.py", "return line(x)", "return -line(x)", True),  # a method
        ("studied.py", "import beside\n", "import beside\nbeside.SLOPE = 5\n", True),  # on import
        ("beside.py", "'red'", "'blue'", False),  # what no result rests on
        ("studied.py", "return beside.COLOUR", "return None", False),
        ("studied.py", "Says this", "Says that", False),
        ("studied.py", "def f(x):", "# Why.\ndef f(x):", False),
    ],
)
def test_a_result_is_kept_as_long_as_the_code_that_it_reaches_stays(
    tmp_path, monkeypatch, file, old, new, counts
):
    digests = []
    for folder in (tmp_path / "before", tmp_path / "after"):
        folder.mkdir()
        for name, text in PARTS.items():
            (folder / name).write_text(text)
        if folder.name == "after":
            text = (folder / file).read_text()
            assert old in text
            (folder / file).write_text(text.replace(old, new))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            importlib.invalidate_caches()
            reach._file.cache_clear()
            digests.append(reach.digest(importlib.import_module("studied").f))
            for name in ("studied", "beside"):
                sys.modules.pop(name, None)
    reach._file.cache_clear()
    assert (digests[0] != digests[1]) == counts


def test_a_digest_changes_with_values_and_with_torch(monkeypatch):
    assert reach.digest(square, 1) == reach.digest(square, 1) != reach.digest(square, 2)
    assert reach.digest(square) != reach.digest(cube)
    before = reach.digest(square)
    monkeypatch.setattr(reach.metadata, "version", lambda name: "0.1")
    assert reach.digest(square) != before


def test_what_a_study_trains_with_is_reached_and_what_draws_is_not():
    reached = {(file, name) for file, name, _ in reach._reached(Path(tuning.__file__), "tune")}
    assert {("local.py", "sgd_loop"), ("federations.py", "_deal")} <= reached
    assert {("partition.py", "partition_by_class"), ("tuning.py", "HEAD_LRS")} <= reached
    assert not {"plot.py", "table.py", "widgets"} & {file for file, _ in reached}


def test_results_by_other_code_are_computed_again(tmp_path):
    cache = tmp_path / "cache.jsonl"
    units = [{"number": 2}]
    assert Runner(cache, 1)(square, units, label="test") == [{"square": 4}]
    cache.write_text(cache.read_text().replace('"square": 4', '"square": 5'))
    assert Runner(cache, 1)(square, units, label="test") == [{"square": 5}]
    for other in (Runner(cache, 1, brought=["a reader's network"]), Runner(cache, 1)):
        entry = json.loads(cache.read_text().splitlines()[0])
        cache.write_text(json.dumps(entry | {"code": "old"}) + "\n")
        assert other(square, units, label="test") == [{"square": 4}]


def test_the_time_left_counts_what_is_planned_elsewhere(tmp_path):
    run = Runner(tmp_path / "cache.jsonl", 2, {"square": 3, "cube": 4})
    run._seconds = {"square": [120.0]}
    assert run._left("square", 2) == "about 0 h 6 min left in all"  # 6 units of 2 minutes, by two
    run._seconds["cube"] = [3600.0]
    assert run._left("square", 2) == "about 1 h 32 min left in all"
    assert run._left("square", 5) == "about 1 h 35 min left in all"  # more than was planned


def test_a_result_is_written_whole_and_sorted(tmp_path):
    path = tmp_path / "x.json"
    record.save_result(path, {"b": 1, "a": [2]})
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert list(tmp_path.iterdir()) == [path]
