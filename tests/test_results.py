"""Every stored result says how it was made; and running experiments stops and resumes."""

import importlib
import json
import os
import signal
import subprocess
from concurrent import futures
from pathlib import Path

import pytest
import torch

import fedlib as fl
from fedlib.experiments import inside, store, study

FOLDER = Path(__file__).parent.parent / "book" / "results"
RESULTS = sorted(path for path in FOLDER.glob("*.json") if ".partial" not in path.suffixes)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_provenance_is_complete(path):
    record = fl.load_result(path.stem)["provenance"]
    assert set(record) - {"compute_seconds"} == set(store.PROVENANCE)
    timed = path.stem == "benchmarks"  # on one draw of the work; its spread is that of the clock
    commands = {"benchmarks": "python -m benchmarks", "long_run": "python -m studies long_run"}
    command = commands.get(path.stem, f"python -m fedlib.experiments {path.stem}")
    assert record["command"].startswith(command)
    assert "dirty" not in record["commit"]
    assert "unknown" not in record["commit"]
    assert record["wall_seconds"] > 0
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert len(record["seeds"]) >= (1 if timed else 3)


def test_the_commit_is_that_of_the_librarys_code(tmp_path):
    def git(*asked):
        who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *asked], check=True, capture_output=True, text=True
        ).stdout.strip()

    folder = tmp_path / "library"
    folder.mkdir()
    assert store.commit_of(folder).startswith("unknown")
    git("init")
    (folder / "code.py").write_text("1")
    (tmp_path / "result.json").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    (tmp_path / "result.json").write_text("2")
    (tmp_path / "new.json").write_text("2")
    assert store.commit_of(folder) == git("rev-parse", "--short", "HEAD")
    (folder / "code.py").write_text("2")
    assert store.commit_of(folder) == git("rev-parse", "--short", "HEAD") + "-dirty"


def test_a_run_from_the_cache_took_a_second_as_well():
    how = store.provenance("x", seeds=[0], wall_seconds=0.01, commit="0")
    assert how["wall_seconds"] == 1
    assert set(how) == set(store.PROVENANCE)


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
    cache.write_text(json.dumps(kept) + '\n{"function": "square", "unit": {"num')
    results = store.run_units(square, units, cache=cache, workers=1, label="test")
    assert [r["square"] for r in results] == [0, 1, "kept", 9]
    again = store.run_units(square, units, cache=cache, workers=1, label="test")
    assert again == results


def cube(number):
    return {"cube": number**3}


def test_two_functions_with_the_same_units_and_one_cache_keep_apart(tmp_path):
    how = dict(units=[{"number": 2}], cache=tmp_path / "cache.jsonl", workers=1, label="test")
    for _ in range(2):
        assert store.run_units(square, **how) == [{"square": 4}]
        assert store.run_units(cube, **how) == [{"cube": 8}]
    lines = map(json.loads, how["cache"].read_text().splitlines())
    assert [line["function"] for line in lines] == ["square", "cube"]


def test_what_is_finished_starts_no_process(tmp_path, monkeypatch):
    how = dict(cache=tmp_path / "cache.jsonl", workers=1, label="test")
    results = store.run_units(square, [{"number": 3}], **how)
    monkeypatch.setattr(store, "_in_parallel", None)
    assert store.run_units(square, [{"number": 3}], **how) == results
    assert store.run_units(square, [], **how) == []


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
        store.run_units(fall, units, cache=cache, workers=1, label="test")
    assert kept(cache) == [{"number": 0, "threads": 1}]


def test_a_unit_that_raises_is_named_and_nothing_further_begins(tmp_path):
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in (0, 1, 3, 4)]
    with pytest.raises(ZeroDivisionError, match="by one") as caught:
        store.run_units(fall, units, cache=cache, workers=1, label="test")
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
    monkeypatch.setattr(store, "ProcessPoolExecutor", AtOnce)
    cache, units = tmp_path / "cache.jsonl", [{"number": n} for n in (1, 5, 6, 7)]
    with pytest.raises(ZeroDivisionError):
        store.run_units(fall, units, cache=cache, workers=2, label="test")
    assert [result["number"] for result in kept(cache)] == [5]


def test_code_that_changed_while_a_study_runs_is_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, cache = tmp_path / "edited.py", tmp_path / "cache.jsonl"
    file.write_text("def f(x):\n    return {'x': x}\n")
    edited, how = importlib.import_module("edited"), dict(cache=cache, workers=1, label="test")
    assert store.run_units(edited.f, [{"x": 1}], **how) == [{"x": 1}]
    file.write_text("def f(x):\n    return {'x': -x}\n")
    with pytest.raises(RuntimeError, match="code changed while this ran. Start it again"):
        store.run_units(edited.f, [{"x": 1}, {"x": 2}], **how)
    assert kept(cache) == [{"x": 1}]


def test_a_cache_is_another_for_other_constants_and_other_code_but_not_other_words(
    tmp_path, monkeypatch
):
    def name(design, file=study.__file__):
        return store.cache_of(tmp_path, "x", design, file=file).name

    assert name({"a": 1}) == name({"a": 1}) != name({"a": 2})
    assert name({"a": 1}) != name({"a": 1}, inside.__file__)
    before = name({"a": 1})
    monkeypatch.setattr(store.metadata, "version", lambda name: "0.1")
    assert name({"a": 1}) != before
    texts = {
        "one": '"""Says this."""\ndef f(x):\n    """And this."""\n    return x\n',
        "worded": '"""Says that."""\n# Why.\ndef f(x):\n    return x\n',
        "other": '"""Says this."""\ndef f(x):\n    """And this."""\n    return -x\n',
    }
    code = {}
    for key, text in texts.items():
        (tmp_path / f"{key}.py").write_text(text)
        code[key] = store._code(tmp_path / f"{key}.py")
    assert code["one"] == code["worded"] != code["other"]


def test_a_result_is_written_whole_and_sorted(tmp_path):
    path = tmp_path / "x.json"
    store.save_result(path, {"b": 1, "a": [2]})
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert list(tmp_path.iterdir()) == [path]
