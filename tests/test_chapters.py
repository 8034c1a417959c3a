"""The form of a numbered chapter: how it opens, how it closes, how long it is."""

import re
import warnings

import pytest
from chapters import Chapter, directives, num_words
from repository import colab_link, notebooks

CHAPTERS = [Chapter(path) for path in notebooks() if re.match(r"\d\d_", path.name)]
chapters = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)


def num_bullets(text: str) -> int:
    return len(re.findall(r"^- ", text, re.MULTILINE))


@chapters
def test_opening(chapter):
    learn = chapter.section("What you will learn")
    assert learn, "no section `## What you will learn`"
    assert num_bullets(learn) == 3, "`What you will learn` needs exactly 3 bullets"
    prerequisites = re.search(r"^\*\*Prerequisites\.\*\*.*?(?=\n\n|\Z)", chapter.text, re.M | re.S)
    assert prerequisites, "no paragraph starting `**Prerequisites.**`"
    assert "](" in prerequisites[0], "the prerequisites hold no link"
    run_time = re.search(r"^\*\*Run time\.\*\*.*?(?=\n\n|\Z)", chapter.text, re.M | re.S)
    assert run_time, "no paragraph starting `**Run time.**`"
    for words in ("2 CPU cores", "GPU"):
        assert words in run_time[0], f"the run time does not say {words!r}"
    assert re.search(r"\d+ (second|minute)", run_time[0]), "the run time gives no figure"
    assert colab_link(chapter.path) in chapter.cells[0]["source"]


@chapters
def test_closing(chapter):
    headings = re.findall(r"^## (.*?)[ \t]*$", chapter.text, re.MULTILINE)
    assert headings[-3:] == ["What we have seen", "Exercises", "Further reading"]
    assert num_bullets(chapter.section("What we have seen")) == 3, (
        "`What we have seen` needs exactly 3 bullets, the answers to `What you will learn`"
    )
    assert len(chapter.section("Further reading").split()) > 10


@chapters
def test_exercises_have_folded_solutions(chapter):
    held = directives(chapter.section("Exercises"))
    exercises = [item for item in held if item.name == "exercise"]
    solutions = {item.title: item for item in held if item.name == "solution"}
    assert 3 <= len(exercises) <= 6, f"{len(exercises)} exercises: 3 to 6"
    for exercise in exercises:
        label = exercise.options.get("label", "")
        assert label.startswith("ex-"), f"exercise {exercise.title!r} needs a label ex-…"
        assert label in solutions, f"exercise {label} has no solution"
        assert "dropdown" in solutions[label].options.get("class", ""), f"{label}: not folded"


@chapters
def test_length(chapter):
    words = num_words(chapter.text)
    assert 1500 <= words <= 3000, f"{words} words: 1,500 to 3,000"
    cells = len(chapter.code) - 1
    assert 10 <= cells <= 20, f"{cells} code cells besides the Colab cell: 10 to 20"


@chapters
def test_cells_are_short(chapter):
    for cell in chapter.code[1:]:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        start = f"cell starting {lines[0][:50]!r}"
        assert len(lines) <= 25, f"{len(lines)} lines in the {start}: move some into fedlib"
        if len(lines) > 15:
            warnings.warn(f"{chapter.path.stem}: {len(lines)} lines in the {start}", stacklevel=1)


@chapters
def test_imports(chapter):
    source = "\n".join(cell["source"] for cell in chapter.code[1:])
    imports = re.findall(r"^\s*(?:import|from) .*$", source, re.MULTILINE)
    assert len(imports) <= 3, f"{len(imports)} import lines: at most 3"


def test_words_are_counted_as_a_reader_would():
    text = """# Two words

One $x + y$ [link](https://example.org/a/b) here.

$$ a = b $$ (eq-no-word)

:::{prf:lemma} Title
:label: lem-none
Text.
:::

```python
not = counted
```

:::{solution} ex-none
:class: dropdown
Not counted either.
:::
"""
    assert num_words(text) == 2 + 4 + 1 + 1
