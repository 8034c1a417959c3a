"""A table of results: text and HTML say the same, whatever the cells; marks follow their rules."""

import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

import fedlib as fl

number = st.floats(-1e3, 1e3, allow_nan=False)
cell = st.one_of(
    st.none(),
    st.integers(-99, 99),
    number,
    st.just(float("nan")),
    st.builds(fl.Interval, number, st.floats(0, 9)),
    st.text("ab<&\"'$x ", max_size=8).map(str.strip),
)
RULES = ["", "highest in column", "lowest in column", "highest in row", "lowest in row", "not 0"]


@st.composite
def arguments(draw):
    width = draw(st.integers(1, 5))
    row = st.lists(cell, min_size=width, max_size=width)
    block = st.dictionaries(st.text("abc <&", max_size=6).map(str.strip), row, min_size=1)
    rows = draw(st.one_of(block, st.dictionaries(st.sampled_from("pqr"), block, min_size=1)))
    options = {"mark": draw(st.sampled_from(RULES)), "caption": draw(st.sampled_from(["", "What"]))}
    return rows, ["", *(f"head {i}" for i in range(width))], options


def build(drawn) -> fl.Table:
    rows, columns, options = drawn
    return fl.table(rows, columns, **options)


def parsed(made: fl.Table) -> BeautifulSoup:
    return BeautifulSoup(made._repr_html_(), "html.parser")


def flat(rows) -> list[list[object]]:
    return [r for v in rows.values() for r in (flat(v) if isinstance(v, dict) else [v])]


@given(arguments())
def test_html_and_text_hold_the_same_cells_in_the_same_order(drawn):
    made, rows = build(drawn), drawn[0]
    shown = [
        [td.get_text().replace("−", "-") for td in tr.select("td")]
        for tr in parsed(made).select("tbody tr:not(.block)")
    ]
    stored = [[cell.text for cell in cells] for _, block in made.blocks for _, cells in block]
    hyphen = [[text.replace("−", "-") for text in row] for row in stored]
    assert shown == hyphen
    assert len(shown) == len(flat(rows))
    body = iter(repr(made).split("\n"))
    for row in stored:  # in the text, every row's cells follow one another on a line
        assert any(all_in_order(line, row) for line in body)


def all_in_order(line: str, texts: list[str]) -> bool:
    at = 0
    for text in filter(None, texts):
        at = line.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


@given(arguments())
def test_marks_are_bold_in_html_where_text_has_a_star(drawn):
    made = build(drawn)
    stars = sum(cell.marked for _, block in made.blocks for _, cells in block for cell in cells)
    assert len(parsed(made).select("tbody td strong")) == stars
    assert repr(made).count("*") - (1 if made.meaning else 0) == stars


@given(arguments())
def test_a_table_is_the_same_each_time(drawn):
    made = build(drawn)
    assert build(drawn) == made
    assert repr(build(drawn)) == repr(made)
    assert all(line == line.rstrip() for line in repr(made).split("\n"))


@given(st.lists(st.lists(number, min_size=3, max_size=3), min_size=2, max_size=5))
def test_what_reads_as_the_best_is_marked_and_nothing_else(values):
    rows = {str(i): row for i, row in enumerate(values)}
    made = fl.table(rows, ["", "a", "b", "c"], form=".1f", mark="highest in column")
    for c, column in enumerate(zip(*values, strict=True)):
        read = [f"{value:z.1f}" for value in column]
        marked = [row[c].marked for _, row in made.blocks[0][1]]
        assert marked == [text == f"{max(column):z.1f}" for text in read]


@pytest.mark.parametrize(
    ("mark", "stars"),
    {
        "highest in column": [(0, 1), (1, 0)],
        "lowest in column": [(0, 0), (1, 1)],
        "highest in row": [(0, 1), (1, 0)],
        "lowest in row": [(0, 0), (1, 1)],
        "not 0": [(1, 0), (1, 1)],
    }.items(),
)
def test_each_rule_marks_what_it_says(mark, stars):
    rows = {"a": [(0.1, 0.2), (0.3, 0.4)], "b": [(0.7, 0.1), (-0.4, 0.1)]}
    made = fl.table(rows, ["", "x", "y"], mark=mark)
    found = [
        (r, c)
        for r, (_, cells) in enumerate(made.blocks[0][1])
        for c, cell in enumerate(cells)
        if cell.marked
    ]
    assert found == stars
    assert made.meaning


def test_blocks_are_compared_by_themselves_and_only_marked_columns():
    rows = {"p": {"a": [1.0, 9.0], "b": [2.0, 8.0]}, "q": {"c": [5.0, 0.0], "d": [4.0, 1.0]}}
    made = fl.table(rows, ["", "x", "y"], mark={"x": "highest in column"})
    stars = [[c.marked for c in cells] for _, block in made.blocks for _, cells in block]
    assert stars == [[False, False], [True, False], [True, False], [False, False]]
    assert made.meaning.endswith("in each block")


def test_nothing_is_best_without_a_rival():
    made = fl.table({"a": [1.0, None], "b": [None, "x"]}, ["", "u", "v"], mark="highest in column")
    assert "*" not in repr(made).replace("* highest", "")


def test_numbers_are_rounded_as_asked_and_a_rounded_zero_has_no_sign():
    rows = {"a": [fl.Interval(-0.0004, 0.01), -0.0, 3, np.float32(0.25), np.int64(7)]}
    made = fl.table(rows, list("_abcde"), form=[".3f", ".1e", ".3f", ".0%", ".2f"])
    ((_, cells),) = made.blocks[0][1]
    assert [cell.text for cell in cells] == ["0.000 ± 0.010", "0.0e+00", "3", "25%", "7"]


def test_signs_belong_to_the_mean_alone():
    made = fl.table({"a": [fl.Interval(0.5, 0.1)]}, ["", "x"], form="+.2f")
    assert "+0.50 ± 0.10" in repr(made)
    assert "+0.50" in parsed(made).select_one("td:not(thead td)").text


def test_units_stand_behind_the_heads_and_not_in_the_names_of_marks():
    made = fl.table(
        {"a": [1.0, 2.0]}, ["", "time", "size"], units=["s", ""], mark={"time": "lowest in column"}
    )
    assert made.columns == ("", "time (s)", "size")


def test_html_is_a_table_that_a_screen_reader_can_walk():
    soup = parsed(fl.table({"p": {"a": [1.5]}}, ["name", "x"], caption="Ex & on"))
    assert soup.caption.text == "Ex & on"
    assert {th["scope"] for th in soup.select("th")} == {"col", "row", "rowgroup"}
    assert soup.select_one("tr.block th")["colspan"] == "2"


def test_wide_tables_name_each_cell_for_a_phone_and_narrow_ones_do_not():
    wide = fl.table({"row": [fl.Interval(0.1, 0.1)] * 5}, ["", *"abcde"])
    narrow = fl.table({"row": [0.1, 0.2]}, ["", "a", "b"])
    assert [td["data-head"] for td in parsed(wide).select("tbody td")] == list("abcde")
    assert not parsed(narrow).select("[data-head]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], ["", "x"]), "Invalid rows of type list.*Use a dict"),
        (({}, ["", "x"]), "Invalid rows.*no rows"),
        (({"p": {}}, ["", "x"]), "Invalid rows.*no rows"),
        (({"a": []}, [""]), "no column of cells"),
        (({"a": [1]}, "ab"), "Invalid columns='ab': not a list of texts"),
        (({"a": [1, 2]}, ["", "x"]), "not 1 cells.*None"),
        (({"a": "x"}, ["", "x"]), "not 1 cells"),
        (({"a": 3}, ["", "x"]), "not 1 cells"),
        (({"p": {"a": [1]}, "b": [1]}, ["", "x"]), "Use blocks of rows throughout"),
        (({"a": [{1}]}, ["", "x"]), r"Invalid rows=\{1\}: not a cell"),
        (({"a": [True]}, ["", "x"]), "Invalid rows=True: not a cell"),
    ],
)
@pytest.mark.usefixtures("as_readers_run_it")
def test_what_is_no_table_is_refused_in_a_sentence(arguments, message):
    with pytest.raises((TypeError, ValueError), match=re.compile(message, re.DOTALL)):
        fl.table(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": ".3q"}, "Invalid form='.3q': not a format of numbers"),
        ({"form": [".3f", ".2f"]}, "2 for 1 columns"),
        ({"form": 3}, "Invalid form=3: not a list of texts"),
        ({"units": ["s", "ms"]}, "Invalid units.*2 for 1 columns"),
        ({"mark": "best"}, "Invalid mark='best': not an option"),
        ({"mark": {"y": "not 0"}}, "not an option"),
        ({"mark": 3}, "Invalid mark of type int"),
        ({"caption": 3}, "Invalid caption of type int"),
        ({"note": None}, "Invalid note of type NoneType"),
    ],
)
@pytest.mark.usefixtures("as_readers_run_it")
def test_a_wrong_option_is_refused_in_a_sentence(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fl.table({"a": [1.0]}, ["", "x"], **options)
