"""Let nbval go on after a chapter: its solutions' programs print what was read, its starters run.

The chapter's kernel is there already, so they cost only themselves. Notebooks lie outside tests/,
so this is loaded by `-p nbval_solutions` in pyproject.toml.
"""

import json
import re

import nbformat
import pytest
import solutions
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def stored() -> dict[str, str]:
    return json.loads(solutions.STORED.read_text("utf-8"))


def unit(number: str) -> float:
    """What one more in the last digit of a printed number is; a whole number is not rounded."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0


def difference(old: str | None, new: str) -> str:
    """What differs in a new text beyond 2 % of a number or its last digit; empty if nothing."""
    if old is None:
        return (
            "tests/solutions.json has no entry: run tools/solutions.py, and compare with the text"
        )
    if NUMBER.sub("#", new).split() != NUMBER.sub("#", old).split():
        return f"it printed\n{new}\nand not\n{old}"
    for was, now in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        if abs(float(now) - float(was)) > max(0.02 * abs(float(was)), 1.01 * unit(was)):
            return f"it printed {now} and not {was}"
    return ""


class Program(IPyNbCell):
    """A program from a solution or an exercise, run where its chapter ends."""

    def runtest(self):
        super().runtest()
        said = "".join(out.text for out in self.test_outputs if out.get("name") == "stdout")
        kind, _, label = self.name.partition(" ")
        if fault := difference(stored().get(label) if kind == "solution" else "", said):
            raise NbCellError(self.cell_num, f"{self.name}: {fault}", self.cell.source)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if isinstance(collector, IPyNbFile) and report.passed:
        number = len(report.result)
        for kind in ("solution", "exercise"):
            code = solutions.blocks(collector.path, kind)
            for label, source in zip(code, solutions.as_cells(code), strict=True):
                about = {"cell": nbformat.v4.new_code_cell(source), "cell_num": number}
                options = {"check": False, "check_exception": False, "skip": False}
                report.result.append(
                    Program.from_parent(collector, name=f"{kind} {label}", options=options, **about)
                )
                number += 1
    return report
