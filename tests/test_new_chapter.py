"""A chapter that `make new-chapter` begins keeps every rule of form."""

import shutil

import editions
import new_chapter
import notebooks
import pytest
import test_book
import test_chapters
import yaml
from chapters import Chapter
from colab import raw_markup
from repository import ROOT, pages

FORM = [
    getattr(module, name)
    for module, left_out in (
        (test_chapters, ()),
        (test_book, ("executed", "run_from_top", "clean", "normalised")),
    )
    for name in dir(module)
    if name.startswith("test_")
    and "chapter" in getattr(module, name).__code__.co_varnames[:1]
    and not any(word in name for word in left_out)
]


@pytest.fixture
def copy(tmp_path):
    for name in ("_toc.yml", "_config.yml", "references.bib", "course/quizzes.yml"):
        path = ROOT / name
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "book").mkdir()
    for path in pages():
        shutil.copyfile(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def test_a_new_chapter_keeps_every_rule(copy):
    path = new_chapter.begin("18_two_words", copy)
    assert len(FORM) > 8
    for rule in FORM:
        rule(Chapter(path))
    assert path in pages(copy)
    assert notebooks.normalise(notebooks.load(path), path, copy) == path.read_text("utf-8")
    assert len(yaml.safe_load((copy / "course" / "quizzes.yml").read_text("utf-8"))) == 18
    labels = editions.targets(copy)
    assert labels["ex-two-words-proof"].name == "Exercise 18.1"
    plainly = editions.translator(path, copy, labels)
    for edition in editions.EDITIONS:
        assert not raw_markup(editions.plain(path, edition, "fedlib", plainly, copy))


def test_its_code_runs(copy, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names = {}
    for cell in Chapter(new_chapter.begin("18_two_words", copy)).code[1:]:
        exec(cell["source"], names)


@pytest.mark.parametrize("name", ["", "title", "17-title", "17_Title", "../17_title", "01_fedavg"])
def test_other_names_are_refused(copy, name):
    with pytest.raises(ValueError, match=f"Invalid NAME={name}: "):
        new_chapter.begin(name, copy)
