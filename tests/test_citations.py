"""Every statement and chapter that fedlib's docstrings and messages cite is in the book."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from chapters import PREFIXES, Chapter
from repository import pages

KINDS = PREFIXES | {"definition": "def", "remark": "rem"}
WORDS = "|".join(kind.capitalize() for kind in KINDS)
CITED = re.compile(rf"\b({WORDS})s?\s+([^\s,.;:)]*(?:\.\w+)?)(?:\s+\(([a-z]+(?:-\w+)+)\))?")
LABEL = re.compile(rf"\b(?:{'|'.join(KINDS.values())})(?:-[a-z0-9]+)+\b")
FILES = sorted((Path(__file__).parents[1] / "fedlib").rglob("*.py"))


def numbered():
    """Statements by kind and number: counted in each chapter, each kind for itself."""
    found, chapters = {}, set()
    for path in pages():
        if not (prefix := re.match(r"\d+", path.name)):
            continue
        chapters.add(int(prefix[0]))
        counts = Counter()
        for directive in Chapter(path).directives:
            kind = directive.name.removeprefix("prf:")
            if directive.name.startswith("prf:") and kind in KINDS:
                counts[kind] += 1
                number = f"{int(prefix[0])}.{counts[kind]}"
                found[kind, number] = directive.options.get("label")
    return found, chapters


STATEMENTS, CHAPTERS = numbered()


def strings(source):
    """Every string of a module that is prose: docstrings and messages, f-strings too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def wrong(text):
    """What a text cites that the book does not have."""
    for kind, number, label in CITED.findall(text):
        if not re.match(r"[\dA-Z]", number) or re.fullmatch(r"[A-Z][a-z]+", number):
            continue  # a word: "Definition of", "Theorem Proving"
        if kind == "Definition" and re.fullmatch(r"\d+", number):
            continue  # a paper's own numbering
        known = STATEMENTS.get((kind.lower(), number))
        if known is None:
            yield f"{kind} {number}"
        elif label and label != known:
            yield f"{kind} {number} ({label}), which is {known}"
    yield from set(LABEL.findall(text)) - set(STATEMENTS.values())
    for listed in re.findall(r"\bChapters?\s+(\d+(?:(?:,\s*|\s+and\s+)\d+)*)", text):
        yield from (f"Chapter {n}" for n in re.findall(r"\d+", listed) if int(n) not in CHAPTERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_cited_is_in_the_book(path):
    faults = [fault for text in strings(path.read_text("utf-8")) for fault in wrong(text)]
    assert not faults


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "linear"])
def test_a_reference_to_a_statement_names_its_label_and_its_chapter(path):
    for text in strings(path.read_text("utf-8")):
        if "Reference:" not in text:
            continue
        reference = " ".join(text.split("Reference:")[1].split())
        for kind, number, label in CITED.findall(reference):
            if "." not in number:
                continue
            assert label, f"{kind} {number}: add ({STATEMENTS[kind.lower(), number]})"
            assert re.search(rf"Chapter {number.split('.')[0]}\b", reference), reference


def test_numbers_are_those_of_the_links_that_the_book_resolves():
    links = re.compile(rf"\[({WORDS}) (\d+\.\d+)\]\(#([\w-]+)\)")
    seen = [link for path in pages() for link in links.findall(Chapter(path).text)]
    assert len(seen) > 30
    for kind, number, label in seen:
        assert STATEMENTS[kind.lower(), number] == label


@pytest.mark.parametrize(
    "text",
    [
        "Theorem B (explicit constants)", "Theorem 7.9", "Lemma 7.9. Chapter 7.", "Remark B6",
        "Theorem 7.1 (thm-cohort)", "Proposition A2", "Theorem C(ii)", "see thm-nowhere",
        "Chapters 3 and 99", "Theorem C′(i)", "Theorem 5", "After Theorem B8.", "Definition 4.7",
    ],
)  # fmt: skip
def test_a_false_citation_is_found(text):
    assert list(wrong(text))


@pytest.mark.parametrize(
    "text",
    [
        "Theorem 7.1 (thm-representation), after Collins et al. (2022). Chapter 7.",
        "Collins et al. (2022), Definition 2. Chapter 4.", "the theorem's two bounds",
        "Lemma 7.2 and Proposition 8.1 (prop-span-floor).", "Chapters 3 and 10.", "Theorem 7.1.",
        "learning, Algorithm 1",
    ],
)  # fmt: skip
def test_a_true_citation_is_none(text):
    assert not list(wrong(text))
