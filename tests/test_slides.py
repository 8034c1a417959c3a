"""The slides: every promise, statement, figure and question of a chapter, and no solution."""

import re
from functools import cache
from pathlib import Path

import editions
import pytest
import site_check
import slides
import yaml
from browser import MISSING
from bs4 import BeautifulSoup
from chapters import Chapter, images
from colab import raw_markup
from myst import NUMBERED
from repository import ROOT, config, notebooks

LABELS = editions.targets()
NUMBERS = editions.chapters()
PATHS = [
    path for path in notebooks() if path.relative_to(ROOT).with_suffix("").as_posix() in NUMBERS
]
QUIZZES = yaml.safe_load((ROOT / "course" / "quizzes.yml").read_text("utf-8"))
paths = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@cache
def deck(path: Path) -> list[slides.Slide]:
    return list(slides.deck(path, editions.translator(path, ROOT, LABELS)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All decks as `make slides` writes them."""
    if not (slides.VENDOR / "reveal").exists():
        pytest.skip("assets/vendor is not fetched")
    folder = tmp_path_factory.mktemp("slides")
    slides.write(folder)
    return folder


@paths
def test_a_deck_holds_what_the_chapter_promises_states_draws_and_asks(path):
    chapter = Chapter(path)
    kinds = [slide.kind for slide in deck(path)]
    held = [item for item in chapter.directives if item.name != "exercise"]
    assert kinds.count("promises") == 2
    assert kinds.count("statement") == sum(item.kind in NUMBERED for item in held)
    assert kinds.count("figure") == sum(bool(images(cell)) for cell in chapter.code)
    assert kinds.count("question") == len(QUIZZES[path.stem])
    assert kinds.count("warm-up") == sum("warm-up" in item.classes for item in chapter.directives)
    assert kinds[0] == "promises"
    assert all(slide.heading and slide.text for slide in deck(path))
    bullets = [re.findall(r"^- ", s.text, re.M) for s in deck(path) if s.kind == "promises"]
    assert [len(found) for found in bullets] == [3, 3]


@paths
def test_slides_are_plain(path):
    cells = [{"cell_type": "markdown", "source": slide.text} for slide in deck(path)]
    assert raw_markup({"cells": cells}) == []


@paths
def test_slides_hold_no_solution_and_no_answer(path):
    plainly = editions.translator(path, ROOT, LABELS)
    shown = "\n".join(slide.text for slide in deck(path))
    kept = [item for item in Chapter(path).directives if item.name == "solution"]
    paragraphs = [part for item in kept for part in plainly.text(item.body).split("\n\n")]
    answers = [plainly.text(str(question["a"])) for question in QUIZZES[path.stem]]
    for text in [*answers, *(part for part in paragraphs if len(part) > 40)]:
        assert text not in shown, text[:60]
    assert "Solution to" not in shown


@pytest.mark.browser  # needs the fetched scripts
def test_pages_hold_every_slide_and_link_to_the_chapter(written):
    listed = BeautifulSoup((written / "index.html").read_text("utf-8"), "html.parser")
    assert {link["href"] for link in listed.select("li a")} == {f"{p.stem}.html" for p in PATHS}
    for path in PATHS:
        page = BeautifulSoup((written / f"{path.stem}.html").read_text("utf-8"), "html.parser")
        assert len(page.select(".slides > section")) == 1 + len(deck(path))
        assert all((written / image["src"]).exists() and image["alt"] for image in page("img"))
        place = path.relative_to(ROOT).with_suffix(".html").as_posix()
        site = config()["html"]["baseurl"]
        assert f"{site}{place}" in {link.get("href") for link in page("a")}


@pytest.mark.browser
def test_on_the_website_slides_ask_and_link_within_it(tmp_path):
    slides.write(tmp_path, "../")
    for page in tmp_path.glob("*.html"):
        text = page.read_text("utf-8")
        assert config()["html"]["baseurl"] not in text
        assert 'src="../_static/vendor/reveal/reveal.js"' in text or page.stem == "index"
    assert not (tmp_path / "vendor").exists()


@pytest.mark.browser
def test_every_slide_fits_the_screen_without_the_network(written):
    """As a lecturer opens them: nothing is asked of elsewhere, no formula fails, nothing is cut."""
    if site_check.chromium() is None:
        pytest.skip(MISSING)
    with site_check.launched() as browser, site_check.served(written) as address:
        page, faults = browser.new_page(viewport={"width": 1280, "height": 720}), []
        page.on(
            "request", lambda asked: faults.append(asked.url) if address not in asked.url else 0
        )
        page.on("requestfailed", lambda asked: faults.append(asked.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        for path in PATHS:
            page.goto(f"{address}{path.stem}.html")
            page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
            sections = page.locator(".slides > section")
            fits = sections.evaluate_all("all => all.map((one) => one.dataset.fits)")
            assert fits == ["true"] * (1 + len(deck(path))), path.stem
            assert page.locator("mjx-merror, [data-mjx-error]").count() == 0, path.stem
            words = page.evaluate("document.querySelector('.slides').textContent")
            words = re.sub(r"(?s)<mjx.*?</mjx>", "", words)
            assert not re.search(r"\\\(|\\\[|\$\$|:::", words), path.stem
        assert faults == []
