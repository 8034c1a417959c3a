"""Every stored result says how it was made; and running experiments stops and resumes."""

import json
import subprocess
from pathlib import Path

import pytest

import fedlib as fl
from fedlib.experiments import store

RESULTS = sorted((Path(__file__).parent.parent / "book" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_provenance_is_complete(path):
    record = fl.load_result(path.stem)["provenance"]
    assert set(record) - {"compute_seconds"} == set(store.PROVENANCE)
    timed = path.stem == "benchmarks"  # on one draw of the work; its spread is that of the clock
    command = "python -m benchmarks" if timed else f"python -m fedlib.experiments {path.stem}"
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
    cache.write_text('{"unit": {"number": 2}, "result": {"square": "kept"}}\n{"unit": {"num')
    results = store.run_units(square, units, cache=cache, workers=1, label="test")
    assert [r["square"] for r in results] == [0, 1, "kept", 9]
    again = store.run_units(square, units, cache=cache, workers=1, label="test")
    assert again == results


def test_a_cache_is_another_for_other_constants_and_other_code_but_not_other_words(tmp_path):
    def name(design, module="study"):
        return store.cache_of(tmp_path, "x", design, module=module).name

    assert name({"a": 1}) == name({"a": 1}) != name({"a": 2})
    assert name({"a": 1}) != name({"a": 1}, "inside")
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
