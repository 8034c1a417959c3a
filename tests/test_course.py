"""The homeworks: masters earn all points, stubs none, each wrong answer loses what it should."""

import csv
import json
import re
from pathlib import Path

import coursework
import pytest
from colab import raw_markup
from coursework import Cell, cells, grade, grade_all, masters, student, write

HOMEWORKS = masters()
HOMEWORKS[max(HOMEWORKS) + 1] = coursework.COURSE / "TEMPLATE_hw" / "master.py"  # as if copied
homeworks = pytest.mark.parametrize("number", HOMEWORKS)
WRONG = {
    f"{number}-{path.stem}": (number, path)
    for number, master in HOMEWORKS.items()
    for path in sorted((master.parent / "wrong").glob("*.py"))
}


def code(number: int) -> list[str]:
    """The master's own code, solutions and all."""
    return [cell.source for cell in cells(HOMEWORKS[number]) if cell.kind == "code"]


def checks(number: int) -> list[Cell]:
    return [cell for cell in cells(HOMEWORKS[number]) if cell.kind in {"public", "hidden"}]


def stub(number: int) -> list[str]:
    found = []
    for cell in student(HOMEWORKS[number], "fedlib")["cells"]:
        if cell["cell_type"] == "code" and not cell["metadata"].get("tags"):
            found.append(cell["source"])
    return found


def fails(path: Path) -> set[str]:
    """The checks that a wrong answer says it fails."""
    said = re.search(r"Fails: (.*?)\n\"\"\"", path.read_text("utf-8"), re.DOTALL)[1]
    return {" ".join(name.split()) for name in said.split(";")}


@homeworks
def test_the_master_earns_every_point(number):
    earned = grade(code(number), cells(HOMEWORKS[number]))
    assert not earned.failed, earned.remarks
    assert earned.total == sum(cell.points for cell in checks(number))


@homeworks
def test_the_stub_earns_nothing_and_runs_to_the_end(number):
    earned = grade(stub(number), cells(HOMEWORKS[number]))
    assert earned.total == 0, earned.points
    assert not [remark for remark in earned.remarks if remark.startswith("code cell")]


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_answer_fails_exactly_its_checks(name):
    number, path = WRONG[name]
    earned = grade([*code(number), path.read_text("utf-8")], cells(HOMEWORKS[number]))
    assert earned.failed == fails(path), earned.remarks


@homeworks
def test_a_homework_has_what_a_course_needs(number):
    held = cells(HOMEWORKS[number])
    assert len([path for n, path in WRONG.values() if n == number]) >= 3
    assert sum(cell.kind == "hidden" for cell in held) >= 3
    assert len({cell.name for cell in held if cell.name}) == sum(bool(c.name) for c in held)
    written = [cell for cell in held if cell.kind == "written"]
    assert written
    assert all("*Rubric.*" in cell.source for cell in written)
    assert re.search(r"About \d+ minutes", held[0].source)
    # Another student's right answer, and a lucky guess, must meet fresh instances.
    fresh = [cell for cell in held if cell.kind == "hidden" and "default_rng()" in cell.source]
    assert fresh


@homeworks
def test_the_students_notebook_holds_no_solution_and_no_hidden_check(number):
    text = json.dumps(student(HOMEWORKS[number], "fedlib"), ensure_ascii=False)
    notebook = json.loads(text)
    for word in ("SOLUTION", "Rubric", "hidden:", "Model answer"):
        assert word not in text
    sources = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    for cell in cells(HOMEWORKS[number]):
        if cell.kind == "hidden":
            assert cell.name not in sources
        for solution in coursework.SOLUTION.finditer(cell.source):
            for line in solution["body"].splitlines():
                assert len(line.strip()) < 25 or line.strip() not in sources, line
    assert not raw_markup(notebook)


@homeworks
def test_the_students_notebook_runs_to_the_end_and_reports(number, capsys):
    names = {}
    for cell in student(HOMEWORKS[number], "fedlib")["cells"]:
        if cell["cell_type"] == "code" and "demo" not in cell["metadata"].get("tags", []):
            source = re.sub(r"^ *%.*$", "    pass", cell["source"], flags=re.MULTILINE)
            exec(source, names)
    shown = capsys.readouterr().out
    assert shown.count("✗") == sum(cell.kind == "public" for cell in checks(number))
    assert "✓" not in shown


def test_all_homeworks_are_written(tmp_path):
    written = write(tmp_path, "https://example.edu/fedlib.whl")
    assert [path.stem for path in written] == [f"hw{number}" for number in masters()]
    for path in written:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert "".join(cells[0]["source"]).startswith("# Homework")
        assert '%pip install -q "https://example.edu/fedlib.whl"' in "".join(cells[1]["source"])


def test_the_page_for_instructors_tells_the_points():
    page = (coursework.ROOT / "book" / "teaching.md").read_text("utf-8")
    for number in masters():
        automatic = sum(cell.points for cell in checks(number))
        by_hand = sum(c.points for c in cells(HOMEWORKS[number]) if c.kind == "written")
        title = cells(HOMEWORKS[number])[0].source.split("\n")[0].removeprefix("# Homework ")
        minutes = re.search(r"About (\d+) minutes", cells(HOMEWORKS[number])[0].source)[1]
        name, numbers = re.escape(title.replace(":", "")), rf"{minutes} \| {automatic} \+ {by_hand}"
        assert re.search(rf"\| {name} \|.*\| {numbers} \|", page), title


MASTER = """# %% [markdown]
# # Homework 1
# %%
def one():
    # BEGIN SOLUTION
    return 1
    # END SOLUTION
# %% public: it is (1 point)
assert one() == 1
# %% hidden: it is whole (2 points)
assert isinstance(one(), int)
# %% [markdown] written: Why (3 points)
# Say why.
# BEGIN SOLUTION
# *Rubric.* 3: because.
# END SOLUTION
"""


@pytest.fixture
def course(tmp_path):
    master = tmp_path / "course" / "hw1" / "master.py"
    master.parent.mkdir(parents=True)
    master.write_text(MASTER)
    return tmp_path / "course"


def notebook(source: str, answer: str = "") -> str:
    made = [
        {"cell_type": "code", "metadata": {}, "source": [source], "outputs": []},
        {"cell_type": "markdown", "metadata": {}, "source": f"*Your answer (Why):*\n\n{answer}"},
    ]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_a_folder_is_graded(course, tmp_path, monkeypatch):
    monkeypatch.setattr(coursework, "SECONDS", 2)
    hands = tmp_path / "hands"
    hands.mkdir()
    for name, source in {
        "right": "def one():\n    return 1",
        "half": "def one():\n    return 1.0",
        "error": "1 / 0",
        "syntax": "def one(:",
        "exits": "import os; os._exit(0)",
        "leaves": "raise SystemExit",
        "hangs": "while True: pass",
        "magic": "%pip install nothing\ndef one():\n    return 1",
        "prints": "print('x' * 100)\ndef one():\n    return 1",
        "meddles": "def one():\n    global one\n    one = None\n    return 1",
    }.items():
        (hands / f"{name}.ipynb").write_text(notebook(source, f"{name} says"))
    (hands / "torn.ipynb").write_text("{")
    table = grade_all(1, hands, course)
    rows = {row["submission"]: row for row in csv.DictReader(table.read_text("utf-8").splitlines())}
    totals = {name: int(row["automatic"]) for name, row in rows.items()}
    assert totals.pop("maximum") == 3
    full = {"right", "magic", "prints", "meddles"}
    expected = dict.fromkeys(totals, 0) | dict.fromkeys(full, 3) | {"half": 1}
    assert totals == expected
    assert rows["maximum"]["Why (by hand)"] == "3"
    assert rows["right"]["Why (by hand)"] == ""
    assert "ended before" in rows["exits"]["remarks"]
    assert "TimeoutError" in rows["hangs"]["remarks"]
    assert "unreadable" in rows["torn"]["remarks"]
    written = (hands / "written" / "why.md").read_text("utf-8")
    assert "## half\n\nhalf says" in written
    assert "*Rubric.*" in written


def test_what_cannot_be_graded_is_said(course, tmp_path):
    with pytest.raises(ValueError, match=r"Invalid HW=7: no such homework"):
        grade_all(7, tmp_path, course)
    with pytest.raises(ValueError, match=r"Invalid SUB=.*: no notebooks there"):
        grade_all(1, tmp_path, course)
    (course / "hw1" / "master.py").write_text("# %% hiden: a (1 point)\n")
    with pytest.raises(ValueError, match=r"Invalid cell 'hiden: a \(1 point\)'"):
        cells(course / "hw1" / "master.py")
