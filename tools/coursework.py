"""Homework from one master each: notebooks for students, and grades for what they hand in.

    python tools/coursework.py make [FOLDER]                  # dist/course by default
    python tools/coursework.py grade NUMBER SUBMISSIONS       # a folder of notebooks -> grades.csv

A master, `course/hwN/master.py`, is a script in cells. The first line of a cell says what it is:

    # %% [markdown]                         text
    # %%                                    code; what stands between `# BEGIN SOLUTION` and
                                            `# END SOLUTION` is left for the student
    # %% demo                               code for the student alone, not run when grading
    # %% public: name (1 point)             a check that the student sees
    # %% hidden: name (3 points)            a check that only the grader runs
    # %% [markdown] written: name (4 points)  a question that people grade; the solution holds a
                                            model answer and the rubric

Checks fail by an exception. Each sees the names that a submission defines, and nothing that another
check has done. A submission runs in a process of its own, with a limit on its time; that protects
from accidents, not from malice: grade on a machine that holds no secrets.
"""

import ast
import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from notebooks import COLAB_TAGS, METADATA
from repository import ROOT, config, pin, setup_cell

COURSE = ROOT / "course"
CELL = re.compile(r"^# %%[ \t]*(?P<text>\[markdown\])?[ \t]*(?P<head>[^\n]*)\n", re.MULTILINE)
CHECK = re.compile(r"(?P<kind>public|hidden|written): (?P<name>.+?) \((?P<points>\d+) points?\)")
SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)# BEGIN SOLUTION\n(?P<body>.*?)^[ \t]*# END SOLUTION[ \t]*(?:\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
SECONDS, CHECK_SECONDS = 120, 20  # for a submission, and for one check of it
REPORT = """
from contextlib import contextmanager


@contextmanager
def check(name):
    try:
        yield
    except Exception as error:
        print(f"✗ {name}: {error!r}")
    else:
        print(f"✓ {name}")
"""


@dataclass(frozen=True)
class Cell:
    kind: str  # markdown, code, demo, public, hidden or written
    source: str
    name: str = ""
    points: int = 0

    @property
    def stub(self) -> str:
        """What the student gets."""
        if self.kind == "written":
            return SOLUTION.sub("", self.source).strip("\n")
        return SOLUTION.sub(lambda found: f"{found['indent']}...\n", self.source).strip("\n")


def cells(master: Path) -> list[Cell]:
    """Read a master."""
    text = master.read_text(encoding="utf-8")
    heads = list(CELL.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found = []
    for head, end in zip(heads, ends, strict=True):
        source, what = text[head.end() : end].strip("\n"), head["head"].strip()
        check = CHECK.fullmatch(what)
        if what and not check and what != "demo":
            raise ValueError(
                f"Invalid cell '{what}' in {master}. Use demo, or `public: name (1 point)`, "
                "hidden or written."
            )
        if head["text"]:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
            source = re.sub(r"^(BEGIN|END) SOLUTION$", r"# \1 SOLUTION", source, flags=re.MULTILINE)
        kind = check["kind"] if check else what or ("markdown" if head["text"] else "code")
        name, points = (check["name"], int(check["points"])) if check else ("", 0)
        found.append(Cell(kind, source, name, points))
    return found


def masters(course: Path = COURSE) -> dict[int, Path]:
    return {int(path.parent.name[2:]): path for path in sorted(course.glob("hw*/master.py"))}


# ---- For students ----


def answer(name: str) -> str:
    return f"*Your answer ({name}):*"


def student(master: Path, requirement: str) -> nbformat.NotebookNode:
    """The notebook of a homework: no solution, no hidden check."""
    made = [_code(setup_cell(requirement) + "\n" + REPORT.rstrip("\n"), COLAB_TAGS)]
    for cell in cells(master):
        if cell.kind == "markdown":
            made.append(_text(cell.stub))
        elif cell.kind == "written":
            made += [_text(f"**{cell.name}** ({cell.points} points). {cell.stub}")]
            made += [_text(answer(cell.name))]
        elif cell.kind == "public":
            body = textwrap.indent(cell.source, "    ")
            made.append(
                _code(f'with check("{cell.name}"):  # points: {cell.points}\n{body}', ["check"])
            )
        elif cell.kind != "hidden":
            made.append(_code(cell.stub, ["demo"] if cell.kind == "demo" else []))
    first = next(n for n, cell in enumerate(made) if cell["cell_type"] == "markdown")
    made.insert(0, made.pop(first))  # the title comes first
    for number, cell in enumerate(made):
        cell["id"] = f"{master.parent.name}-{number:02}"
    metadata = METADATA | {"course": master.parent.name}
    return nbformat.from_dict(
        {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    )


def _text(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source: str, tags: list[str]) -> dict:
    empty = {"execution_count": None, "outputs": []}
    metadata = {"tags": list(tags)} if tags else {}
    return {"cell_type": "code", "metadata": metadata, "source": source, **empty}


def write(folder: Path, requirement: str = "", course: Path = COURSE) -> list[Path]:
    """Write the notebooks of all homeworks; return their paths."""
    commit = pin(ROOT)
    at = f"@{commit}" if commit else ""
    requirement = requirement or f"git+{config()['repository']['url']}{at}"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, master in masters(course).items():
        made.append(folder / f"hw{number}.ipynb")
        notebook = student(master, requirement)
        nbformat.validate(notebook)
        made[-1].write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
    return made


# ---- Grades ----


@dataclass(frozen=True)
class Grade:
    """What one submission earned: points by check, and what went wrong."""

    points: dict[str, int]
    remarks: list[str]

    @property
    def total(self) -> int:
        return sum(self.points.values())

    @property
    def failed(self) -> set[str]:
        return {name for name, points in self.points.items() if not points}


def submitted(path: Path) -> tuple[list[str], dict[str, str]]:
    """The code cells of a notebook that are to run, and its written answers."""
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")], {}
    code, answers = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        found = re.match(r"\*Your answer \((?P<name>.+?)\):\*", source)
        if cell["cell_type"] == "markdown" and found:
            answers[found["name"]] = source[found.end() :].strip()
        tags = set(cell.get("metadata", {}).get("tags", []))
        if cell["cell_type"] == "code" and not tags & {"check", "demo"}:
            code.append(source)
    return code, answers


def run(code: list[str], master: list[Cell]) -> Grade:
    """Run a submission's cells, then each check on what they define."""
    names: dict = {"__name__": "submission"}
    remarks = []
    for number, source in enumerate(code, 1):
        source = re.sub(r"^[ \t]*[%!?].*$", "pass", source, flags=re.MULTILINE)
        if re.match(r"# Colab set-up", source):
            continue
        if fault := _fault(source, names, SECONDS):
            remarks.append(f"code cell {number}: {fault}")
    points, kept = {}, dict(names)
    for cell in master:
        if cell.kind in {"public", "hidden"}:
            fault = _fault(cell.source, dict(names), CHECK_SECONDS)
            names.clear()  # the submission's functions may have changed what they see
            names.update(kept)
            points[cell.name] = 0 if fault else cell.points
            if fault:
                remarks.append(f"{cell.name}: {fault}")
    return Grade(points, remarks)


def _fault(source: str, names: dict, seconds: int) -> str:
    """Run code; return what went wrong in a line, or nothing."""
    try:
        tree = ast.parse(source)
        with contextlib.redirect_stdout(io.StringIO()), _limit(seconds):
            exec(compile(tree, "<submission>", "exec"), names)
    except BaseException as error:  # a submission may leave by SystemExit, too
        return f"{type(error).__name__}: {error}".split("\n")[0][:200]
    return ""


@contextlib.contextmanager
def _limit(seconds: int):
    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _child(pipe, code: list[str], master: list[Cell]) -> None:
    sys.stderr = sys.stdout = io.StringIO()
    pipe.send(run(code, master))


def grade(code: list[str], master: list[Cell]) -> Grade:
    """Grade one submission in a process of its own; one that dies or hangs earns nothing."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, code, master))
    process.start()
    send.close()
    num_checks = sum(cell.kind in {"public", "hidden"} for cell in master)
    fault = "the process ended before its checks did"
    try:
        if receive.poll(SECONDS + CHECK_SECONDS * num_checks):
            return receive.recv()
        fault = "no end in sight"
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    names = [cell.name for cell in master if cell.kind in {"public", "hidden"}]
    return Grade(dict.fromkeys(names, 0), [fault])


def grade_all(number: int, folder: Path, course: Path = COURSE) -> Path:
    """Grade a folder of notebooks; write grades.csv, and written/ for people to grade."""
    if number not in masters(course):
        raise ValueError(f"Invalid HW={number}: no such homework. Use one of {[*masters(course)]}.")
    submissions = sorted(folder.glob("*.ipynb"))
    if not submissions:
        raise ValueError(
            f"Invalid SUB={folder}: no notebooks there. Use the folder that holds them."
        )
    import fedlib  # noqa: F401  # once: every submission runs in a copy of this process

    master = cells(masters(course)[number])
    checks = [cell.name for cell in master if cell.kind in {"public", "hidden"}]
    written = [cell for cell in master if cell.kind == "written"]
    rows, answers = [], {cell.name: [f"# {cell.name}\n\n{cell.source}"] for cell in written}
    for path in submissions:
        try:
            code, given = submitted(path)
            earned = grade(code, master)
        except (ValueError, KeyError) as error:  # not a notebook
            given, earned = {}, Grade(dict.fromkeys(checks, 0), [f"unreadable: {error}"])
        for cell in written:
            answers[cell.name].append(f"## {path.stem}\n\n{given.get(cell.name) or '(none)'}")
        by_hand = [""] * len(written)
        row = [path.stem, *earned.points.values(), earned.total, *by_hand]
        rows.append([*row, "; ".join(earned.remarks)])
    table = folder / "grades.csv"
    maximum = [cell.points for cell in master if cell.name in checks]
    by_hand = [f"{cell.name} (by hand)" for cell in written]
    most = ["maximum", *maximum, sum(maximum), *[cell.points for cell in written], ""]
    with table.open("w", newline="", encoding="utf-8") as file:
        head = ["submission", *checks, "automatic", *by_hand, "remarks"]
        csv.writer(file).writerows([head, most, *rows])
    for name, parts in answers.items():
        (folder / "written").mkdir(exist_ok=True)
        text = "\n\n".join(parts) + "\n"
        (folder / "written" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.md").write_text(text)
    return table


def main() -> int:
    match sys.argv[1:]:
        case ["make", *folder]:
            made = write(
                Path(*folder) if folder else ROOT / "dist" / "course", os.environ.get("INSTALL", "")
            )
            print(f"wrote {len(made)} homeworks below {made[0].parent}")
        case ["grade", number, folder] if number.isdigit() and folder:
            start = time.monotonic()
            table = grade_all(int(number), Path(folder))
            print(f"wrote {table} in {time.monotonic() - start:.0f} s")
        case _:
            sys.exit("Use: make course, or make grade HW=1 SUB=folder")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
