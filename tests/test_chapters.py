"""The form of a numbered chapter: how it opens, how it closes, how long it is."""

import re
import warnings

import pytest
import yaml
from chapters import Chapter, directives, num_words
from editions import PYTHON
from myst import KINDS, LEVELS
from repository import ROOT, colab_link, notebooks

CHAPTERS = [Chapter(path) for path in notebooks() if re.match(r"\d\d_", path.name)]
chapters = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)


# A fork that wants other rules changes them there.
RULES = yaml.safe_load((ROOT / "book" / "house_rules.yml").read_text(encoding="utf-8"))


def between(rule: str, number: int) -> bool:
    least, most = RULES[rule]
    assert least <= number <= most, f"{number} {rule}: {least} to {most} (book/house_rules.yml)"
    return True


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
    expected = ["What we have seen", "Check yourself", "Exercises", "Further reading"]
    assert headings[-4:] == expected
    assert num_bullets(chapter.section("What we have seen")) == 3, (
        "`What we have seen` needs exactly 3 bullets, the answers to `What you will learn`"
    )
    assert len(chapter.section("Further reading").split()) > 10
    quiz = directives(chapter.section("Check yourself"))
    assert len(quiz) >= RULES["questions"], f"{len(quiz)} questions in course/quizzes.yml"


@chapters
def test_exercises_have_folded_solutions(chapter):
    held = directives(chapter.section("Exercises"))
    exercises = [item for item in held if item.name == "exercise"]
    solutions = {item.title: item for item in held if item.name == "solution"}
    warm = [item for item in exercises if "warm-up" in item.classes]
    assert len(warm) >= RULES["warm_ups"], f"{len(warm)} warm-ups"
    assert between("exercises", len(exercises) - len(warm))
    for exercise in exercises:
        label = exercise.options.get("label", "")
        assert label.startswith("ex-"), f"exercise {exercise.title!r} needs a label ex-…"
        assert label in solutions, f"exercise {label} has no solution"
        assert "dropdown" in solutions[label].options.get("class", ""), f"{label}: not folded"


@chapters
def test_exercises_say_their_kind_difficulty_and_minutes(chapter):
    for exercise in directives(chapter.section("Exercises")):
        if exercise.name == "exercise":
            label, said = exercise.options["label"], set(exercise.classes)
            assert said & set(KINDS), f"{label}: one of {KINDS} in its :class:"
            assert len(said & set(LEVELS)) == 1, f"{label}: one of {LEVELS} in its :class:"
            assert re.search(r"\d+ minutes", exercise.marks), f"{label}: min-10 in its :class:"


@chapters
def test_an_exercise_is_a_cell_and_so_is_a_solution(chapter):
    for cell in chapter.cells:
        held = [d for d in directives(cell["source"]) if d.name in {"exercise", "solution"}]
        if cell["cell_type"] == "markdown" and held:
            assert len(held) == 1
            assert re.match(rf":{{3,}}\{{{held[0].name}\}}", cell["source"]), held[0].title
            assert cell["id"] == held[0].options["label"]


@chapters
def test_hard_exercises_have_a_folded_hint_and_programs_a_start(chapter):
    for exercise in directives(chapter.section("Exercises")):
        if exercise.name == "exercise":
            label, said = exercise.options["label"], set(exercise.classes)
            hints = [item for item in directives(exercise.body) if "exercise-hint" in item.classes]
            assert len(hints) == bool(said & set(RULES["hints"])), f"{label}: a hint"
            assert all(hint.folded and hint.title == "Hint" for hint in hints), label
            starters = PYTHON.findall(exercise.body)
            assert len(starters) == bool(said & set(RULES["starters"])), f"{label}: a start"
            assert all("..." in code for code in starters), f"{label}: what is left to write is ..."


@chapters
def test_length(chapter):
    """Exercises and questions do not count: nobody should leave one out for want of room."""
    assert between("words", num_words(chapter.text.partition("\n## Check yourself")[0]))
    tags = [cell["metadata"].get("tags", []) for cell in chapter.code[1:]]  # without Colab's
    assert between("code_cells", sum("interactive" not in kept for kept in tags))


@chapters
def test_cells_are_short(chapter):
    for cell in chapter.code[1:]:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        start = f"cell starting {lines[0][:50]!r}"
        said = f"{len(lines)} lines in the {start}: use fedlib, or change book/house_rules.yml"
        assert len(lines) <= RULES["lines"], said
        if len(lines) > RULES["lines_warned"]:
            warnings.warn(f"{chapter.path.stem}: {len(lines)} lines in the {start}", stacklevel=1)


@chapters
def test_imports(chapter):
    cells = [cell["source"] for cell in chapter.code[1:]]
    source = "\n".join(cell for cell in cells if not cell.startswith("%%writefile"))  # of files
    imports = re.findall(r"^\s*(?:import|from) .*$", source, re.MULTILINE)
    assert len(imports) <= RULES["imports"], f"{len(imports)} import lines (book/house_rules.yml)"


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
