"""The notebooks as files: complete, executed, normalised, described."""

import re

import notebooks
import pytest
import refresh
from chapters import Chapter, images
from repository import ROOT, colab_cell, pages
from repository import notebooks as listed_notebooks

PAGES = [Chapter(path) for path in pages()]
NOTEBOOKS = [Chapter(path) for path in listed_notebooks()]


def name(chapter: Chapter) -> str:
    return chapter.path.stem


def test_table_of_contents_and_folder_hold_the_same_pages():
    written = {path for path in (ROOT / "book").rglob("*") if path.suffix in {".ipynb", ".md"}}
    written = {path for path in written if ".ipynb_checkpoints" not in path.parts}
    assert written == set(pages())


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_notebook_is_normalised(chapter):
    expected = notebooks.normalise(notebooks.load(chapter.path), chapter.path)
    assert chapter.path.read_text(encoding="utf-8") == expected, "Run `make format`."


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_notebook_starts_with_its_title_and_the_colab_cell(chapter):
    assert chapter.cells[0]["cell_type"] == "markdown"
    assert chapter.cells[0]["source"].startswith("# ")
    assert chapter.code[0]["source"] == colab_cell()
    assert chapter.code[0]["metadata"]["tags"] == ["hide-input", "remove-output"]
    assert sum(notebooks.is_colab_cell(cell) for cell in chapter.code) == 1


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_notebook_was_run_from_top_to_bottom(chapter):
    counts = [cell["execution_count"] for cell in chapter.code]
    assert counts == list(range(1, len(counts) + 1)), "Run `make refresh`."


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_stored_outputs_are_clean(chapter):
    assert not chapter.code[0]["outputs"], "the Colab cell printed something"
    for cell in chapter.code:
        for output in cell["outputs"]:
            where = f"in the cell starting {cell['source'][:60]!r}"
            assert output["output_type"] != "error" or "raises-exception" in cell["metadata"].get(
                "tags", []
            ), f"stored error {where}"
            assert output.get("name") != "stderr", f"stderr stored {where}"
            assert "image/svg+xml" not in output.get("data", {}), f"SVG stored {where}: use PNG"


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_no_cell_escapes_the_comparison_of_outputs(chapter):
    for cell in chapter.code:
        hidden = {"nbval-skip", "nbval-ignore-output"} & set(cell["metadata"].get("tags", []))
        assert not hidden, f"{hidden} on the cell starting {cell['source'][:60]!r}"
        for marker in ("NBVAL_SKIP", "NBVAL_IGNORE_OUTPUT", "PYTEST_VALIDATE_IGNORE_OUTPUT"):
            assert marker not in cell["source"]


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=name)
def test_figures_have_alt_text_name_and_caption(chapter):
    for cell in chapter.code:
        pictures = images(cell)
        if not pictures:
            continue
        where = f"the cell starting {cell['source'][:60]!r}"
        assert len(pictures) == 1, f"{len(pictures)} pictures from {where}: draw one a cell"
        options = cell["metadata"].get("mystnb", {})
        assert len(options.get("image", {}).get("alt", "")) >= 40, (
            f"alt text missing or too short on {where}: say what is drawn and what it shows"
        )
        figure = options.get("figure", {})
        assert figure.get("name", "").startswith("fig-"), f"no figure name on {where}"
        assert len(figure.get("caption", "")) >= 20, f"no caption on {where}"


@pytest.mark.parametrize("chapter", PAGES, ids=name)
def test_markdown_images_have_alt_text_and_lie_in_the_repository(chapter):
    for alt, address in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", chapter.text):
        assert len(alt) >= 40, f"alt text missing or too short: {address}"
        assert "://" not in address, f"picture from elsewhere: {address}"
    for tag in re.findall(r"<img[^>]*>", chapter.text):
        assert re.search(r"alt=\"[^\"]{40,}\"", tag), f"alt text missing or too short: {tag}"
    for directive in chapter.directives:
        if directive.name in {"figure", "image"}:
            assert len(directive.options.get("alt", "")) >= 40, f"alt text: {directive.title}"


def test_the_readme_shows_the_introductions_figure():
    intro = notebooks.load(ROOT / "book" / "intro.ipynb")
    assert refresh.CLAIM.read_bytes() == refresh.claim(intro), "Run `make refresh`."
    assert refresh.CLAIM.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text("utf-8")


def test_the_readmes_example_runs(capsys):
    readme = (ROOT / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.8  # mean accuracy over clients
