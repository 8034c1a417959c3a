"""Every theorem, proposition, lemma and corollary has a check in its chapter, and tests here:
one of the claim, one that shows it break outside its assumptions.
"""

import ast
import re
from pathlib import Path

import pytest
from chapters import PREFIXES, STATEMENTS, Chapter, directives
from repository import pages

TESTS = Path(__file__).parent
KINDS = "|".join(PREFIXES.values())
STATED = [(Chapter(path), statement) for path in pages() for statement in Chapter(path).statements]


def test_names() -> set[str]:
    found = set()
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


test_names.__test__ = False  # a helper, in spite of its name


def missing(label: str, code: list[str], tests: set[str]) -> list[str]:
    """What a labelled statement lacks, among the code cells of its chapter and the tests."""
    lacks = []
    mark = re.compile(rf"^# check: (\S+, )*{re.escape(label)}(, \S+)*\s*$", re.MULTILINE)
    if not any(mark.search(cell) and re.search(r"^\s*assert\b", cell, re.M) for cell in code):
        lacks.append(f"a cell with `# check: {label}` and an assert")
    stem = f"test_{label.replace('-', '_')}"
    if not any(test == stem or test.startswith(f"{stem}_") for test in tests):
        lacks.append(f"a test named {stem} in tests/")
    if not any(test.startswith(f"{stem}_needs_") for test in tests):
        lacks.append(f"a negative control named {stem}_needs_… in tests/")
    return lacks


@pytest.mark.parametrize(
    ("chapter", "statement"),
    STATED,
    ids=[statement.options.get("label", "unlabelled") for _, statement in STATED],
)
def test_statement_is_checked(chapter, statement):
    kind = statement.name.removeprefix("prf:")
    label = statement.options.get("label", "")
    assert re.fullmatch(rf"{PREFIXES[kind]}(-[a-z0-9]+)+", label), (
        f"Invalid label {label!r} on {kind} {statement.title!r}: use {PREFIXES[kind]}-some-words."
    )
    lacks = missing(label, [cell["source"] for cell in chapter.code], test_names())
    assert not lacks, f"{chapter.path.name}: {label} lacks " + " and ".join(lacks)


def test_labels_are_unique():
    labels = [statement.options.get("label") for _, statement in STATED]
    assert len(labels) == len(set(labels))


def test_every_check_and_test_names_a_statement_that_exists():
    labels = {statement.options.get("label", "") for _, statement in STATED}
    stems = {label.replace("-", "_") for label in labels}
    for test in test_names():
        if re.match(rf"test_({KINDS})_", test):
            rest = test.removeprefix("test_")
            known = any(rest == stem or rest.startswith(f"{stem}_") for stem in stems)
            assert known, f"{test}: the book has no such statement"
    for path in pages():
        for cell in Chapter(path).code:
            for line in re.findall(r"^# check: (.*)$", cell["source"], re.MULTILINE):
                for label in line.strip().split(", "):
                    assert label in labels, f"{path.name}: `# check: {label}` names no statement"


# The tests above, tested on statements that lack something.

STATEMENT = """
:::{{prf:{kind}}} A title
:label: thm-a-claim
Some text.

````{{note}}
Nested.
````
:::
"""


@pytest.mark.parametrize("kind", STATEMENTS)
def test_statements_are_found(kind):
    first, second = directives(STATEMENT.format(kind=kind))
    assert (first.name, first.title) == (f"prf:{kind}", "A title")
    assert first.options == {"label": "thm-a-claim"}
    assert second.name == "note"


def test_missing_reports_what_a_statement_lacks():
    check = "# check: thm-a-claim\nassert 1 + 1 == 2"
    control = "test_thm_a_claim_needs_its_assumption"
    assert not missing("thm-a-claim", [check], {"test_thm_a_claim", control})
    assert not missing("thm-a-claim", [check], {control})
    assert len(missing("thm-a-claim", [check], {"test_thm_a_claim"})) == 1
    assert len(missing("thm-a-claim", [check], {"test_thm_a_claims"})) == 2
    assert len(missing("thm-a-claim", ["# check: thm-a-claim\nprint(2)"], {control})) == 1
    assert len(missing("thm-a-claim", ["# check: thm-a-claim-two\nassert 1"], set())) == 3
