"""The page for instructors and the paths: every chapter is there, and none before what it needs."""

import re
from itertools import pairwise

import editions
import pytest
from chapters import Chapter
from repository import ROOT, notebooks

PAGE = Chapter(ROOT / "book" / "teaching.md")
SYLLABUS = (ROOT / "course" / "README.md").read_text("utf-8")
CHAPTERS = {int(p.stem[:2]): p for p in notebooks() if p.stem[:2].isdigit()}
ROW = re.compile(r"^\| \[(\d+)\]\((\S+?)\) \| (.+?) \| ([\d, –]+) \| (\d+) \|$", re.MULTILINE)
OUTCOMES = {
    int(n): (file, can, needs, minutes) for n, file, can, needs, minutes in ROW.findall(PAGE.text)
}
PATHS = {
    int(number): [int(n) for n in re.findall(r"\d+", re.sub(r"\*.*?\*", "", chapters))]
    for number, chapters in re.findall(
        r"^\| (\d+) \| (.*?) \|$", PAGE.section("Ways through"), re.M
    )
}


def needs(chapter: int) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", OUTCOMES[chapter][2])}


def test_every_chapter_has_an_outcome_its_needs_and_minutes():
    assert set(OUTCOMES) == set(CHAPTERS)
    for number, (file, can, _, minutes) in OUTCOMES.items():
        assert file == CHAPTERS[number].name
        assert len(can.split()) > 4, can
        assert 60 <= int(minutes) <= 120
        assert all(before < number for before in needs(number))


@pytest.mark.parametrize("sessions", PATHS)
def test_no_path_comes_to_a_chapter_before_what_it_needs(sessions):
    path = PATHS[sessions]
    assert set(path) <= set(CHAPTERS)
    for place, chapter in enumerate(path):
        assert needs(chapter) <= set(path[:place]), f"{sessions} sessions, Chapter {chapter}"
    assert {6, 7} <= set(path), "the positive result"


def test_there_are_paths_of_three_lengths_and_the_syllabus_has_their_chapters():
    assert list(PATHS) == [2, 4, 8]
    for number, path in PATHS.items():
        assert f"{number} sessions" in SYLLABUS
        assert {str(n) for n in path} <= set(re.findall(r"\d+", SYLLABUS))


def test_the_graph_of_dependencies_is_that_of_the_table():
    graph = re.search(r"```\n(1 -> .*?)```", SYLLABUS, re.DOTALL)[1]
    edges = set()
    for chain in re.split(r"\n| {3,}", graph):
        steps = [[int(n) for n in re.findall(r"\d+", step)] for step in chain.split("->")]
        edges |= {(a, b) for s, t in pairwise(steps) for a in s for b in t}
    assert edges == {(before, number) for number in OUTCOMES for before in needs(number)}


def test_sections_that_may_be_left_out_exist_and_are_marked():
    labels = editions.targets()
    for name, headings in editions.optional().items():
        path = ROOT / f"{name}.ipynb"
        found = re.findall(r"^##+ (.*?)[ \t]*$", Chapter(path).text, re.MULTILINE)
        assert set(headings) <= set(found), name
        made = editions.plain(path, "colab", "fedlib", editions.translator(path, ROOT, labels))
        text = "\n".join(cell["source"] for cell in made["cells"])
        assert text.count(editions.OPTIONAL) == len(headings), name


@pytest.mark.parametrize(
    "what", ["prerequisites", "Fork", "Data", "House rules", "Proofs", "CC BY 4.0", "slides"]
)
def test_the_page_tells_an_instructor_what_is_asked_first(what):
    words = {"prerequisites": "Five questions tell"}.get(what, what)
    assert words in PAGE.text
