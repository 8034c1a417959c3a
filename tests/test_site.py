"""The built website: every page, wide and narrow, light and dark, in a real browser."""

import base64
import io
import json
import os
import random
import re
from functools import cache
from pathlib import Path

import pictures
import pytest
import site_check
from browser import MISSING
from bs4 import BeautifulSoup
from chapters import Chapter, images
from PIL import Image
from repository import PLACEHOLDER, ROOT, config, notebooks, pages

SITE = ROOT / "_build" / "html"
REQUIRED = os.environ.get("FEDLIB_REQUIRE_BROWSER") == "1"
AXE = ROOT / "assets" / "vendor" / "tests" / "axe.min.js"
STATEMENT = "div.proof.admonition[id], div.exercise.admonition[id]"


def built_pages() -> list[str]:
    found = [path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")]
    return sorted(name for name in found if not name.startswith(("_static", "_sources", "slides")))


def written_pages() -> list[str]:
    """The pages with a source, as built."""
    return [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in pages()]


@cache
def parsed(name: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / name).read_text(encoding="utf-8"), "html.parser")


def unavailable(reason: str) -> None:
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


@pytest.fixture(scope="module")
def site():
    if not (SITE / "index.html").exists():
        unavailable("the site is not built. Run `make site`.")
    return SITE


@pytest.fixture(scope="module")
def browser():
    if site_check.chromium() is None:
        unavailable(MISSING)
    with site_check.launched() as running:
        yield running


@pytest.fixture(scope="module")
def address(site):
    with site_check.served(site) as served_at:
        yield served_at


def test_every_page_of_the_table_of_contents_is_built(site):
    expected = {f"{path.relative_to(ROOT).with_suffix('')}.html" for path in pages()}
    assert expected <= set(built_pages())


def test_every_built_image_has_alt_text(site):
    for name in built_pages():
        soup = BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")
        for image in soup.find_all("img"):
            assert image.get("alt", "").strip(), f"{name}: no alt text on {image.get('src')}"


def test_alt_texts_of_the_notebooks_reach_the_pages(site):
    for path in notebooks():
        page = (site / path.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")
        shown = {image.get("alt") for image in BeautifulSoup(page, "html.parser").find_all("img")}
        for cell in Chapter(path).code:
            if images(cell):
                assert cell["metadata"]["mystnb"]["image"]["alt"] in shown


def test_code_that_draws_or_checks_is_folded_and_other_code_is_not(site):
    """One rule for all pages; the line above says what the code is for."""
    for path in notebooks():
        page = parsed(path.relative_to(ROOT).with_suffix(".html").as_posix())
        shown = page.select("article div.cell")
        cells = Chapter(path).code[1:]  # less Colab's
        cells = [c for c in cells if "remove-cell" not in c["metadata"].get("tags", [])]
        assert len(shown) == len(cells), path
        for html, cell in zip(shown, cells, strict=True):
            summary = html.select_one("details.hide > summary")
            check = re.match(r"# check: (\S+)", cell["source"])
            if check:
                (said,) = (p.text for p in summary.select("p.collapsed"))
                assert re.match(r"Show the code that checks [A-Z]\w+ \d+", said), said
            elif images(cell):
                assert summary.select_one("p.collapsed").text == "Show the code of this figure"
                assert html.select_one("figure ~ details, div:has(figure) ~ details")
            else:
                tags = cell["metadata"].get("tags", [])
                assert bool(summary) == ("hide-input" in tags), (path, cell["id"])
            assert not (summary and summary.has_attr("aria-label"))


def test_what_others_made_travels_with_its_licence(site):
    """Every script and font of theirs, in the list and with the file that the list names."""
    static = site / "_static"
    text = (static / "licenses.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^(vendor/\S+)", text, re.MULTILINE)
    for path in (static / "vendor").rglob("*"):
        relative = path.relative_to(static)
        if path.is_file() and path.name != "fetched":
            assert any(
                relative.match(name) or name in map(str, relative.parents) for name in listed
            )
    for named in re.findall(r": (vendor/\S+)\.$", text, re.MULTILINE):
        assert len((static / named).read_text(encoding="utf-8")) > 500, named


def test_every_page_says_what_it_is(site):
    described = {}
    for name in written_pages():
        head = parsed(name).head

        def content(**attributes):
            return head.find("meta", attrs=attributes)["content"]  # noqa: B023

        assert len(head.find_all("meta", attrs={"name": "viewport"})) == 1, name
        assert 40 <= len(content(name="description")) <= 201, name
        assert "\\" not in content(name="description"), name
        assert content(property="og:description") == content(name="description")
        assert content(property="og:url").endswith(name)
        assert content(property="og:image").endswith("/_static/claim.png")
        assert content(property="og:title") in head.title.text
        assert {"icon", "canonical"} <= {rel for link in head("link") for rel in link["rel"]}, name
        described.setdefault(content(name="description"), []).append(name)
    assert all(len(names) == 1 for names in described.values()), described


def test_site_map_lists_every_page_below_the_one_address(site):
    base = config()["html"]["baseurl"]
    listed = re.findall("<loc>(.*)</loc>", (site / "sitemap.xml").read_text())
    assert listed == [base + name for name in written_pages()]
    assert f"Sitemap: {base}sitemap.xml" in (site / "robots.txt").read_text()
    assert "no such page" in (site / "404.html").read_text()


def test_no_page_links_to_the_placeholder(site):
    for name in built_pages():
        links = [link["href"] for link in parsed(name).find_all("a", href=True)]
        assert not [link for link in links if PLACEHOLDER in link], name


def test_nothing_unused_is_served(site):
    served = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    unused = ("fontawesome", "axe", "package", ".map")
    assert not [name for name in served if any(word in name for word in unused)]


def test_ids_are_unique_on_every_page(site):
    for name in built_pages():
        # The theme's own page for searching has two fields of one name.
        ids = [element["id"] for element in parsed(name).select("[id]:not(#search-input)")]
        assert len(ids) == len(set(ids)), (name, {id for id in ids if ids.count(id) > 1})


def test_every_statement_has_a_link_a_place_in_the_index_and_in_the_search(site):
    index = parsed("prf-prf.html").find("article")
    listed = {link["href"]: link.text for link in index.find_all("a")}
    objects = json.loads(
        re.search(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text())[1]
    )
    searched = {
        entry[3]: ".".join(filter(None, (prefix, entry[4])))
        for prefix, entries in objects["objects"].items()
        for entry in entries
    }
    count = 0
    for name in written_pages():
        for statement in parsed(name).select(STATEMENT):
            if {"proof", "exercise"} & set(statement["class"]) and statement.select_one(
                ".caption-number"
            ):
                count += 1
                title = statement.select_one(".admonition-title")
                link = title.find("a", class_="headerlink")
                assert link["href"] == f"#{statement['id']}", (name, statement["id"])
                number = title.select_one(".caption-number").text.strip()
                assert listed[f"{name}#{statement['id']}"].startswith(number)
                assert searched[statement["id"]].startswith(number)
    assert count > 100


def test_bibliography_is_labelled_as_the_text_cites(site):
    entries = parsed("book/bibliography.html").select("div.citation[id]")
    labels = {entry["id"]: entry.select_one("span.label").text for entry in entries}
    for label in labels.values():
        assert re.fullmatch(r"\[[^\W\d_][^\d\\{}]+, \d{4}[a-z]?\]", label), label
    cited = set()
    for name in written_pages():
        for link in parsed(name).select("article a[href*='bibliography.html#cite-']"):
            anchor = link["href"].split("#")[1]
            cited.add(anchor)
            assert re.search(r"\d{4}", link.text)[0] in labels[anchor], (name, link.text)
    assert cited == set(labels)


def test_index_of_terms_leads_to_explanations(site):
    links = parsed("genindex.html").select("article li a")
    assert len(links) > 20
    for link in links:
        page, anchor = link["href"].split("#")
        assert parsed(page).find(id=anchor), link["href"]


def test_every_link_to_a_statement_or_citation_has_a_preview(site):
    script = (site / "_static" / "previews.js").read_text(encoding="utf-8")
    shown = json.loads(re.fullmatch(r"bookPreviews\((.*)\)\n", script, re.DOTALL)[1])
    for address, html in shown.items():
        preview = BeautifulSoup(html, "html.parser")
        assert preview.text.strip(), address
        assert not preview.select("a, [id], script, button"), address
        for image in preview.select("img"):
            assert (site / image["src"]).is_file(), address
    for name in written_pages():
        page = parsed(name)
        for link in page.select("article a[href*='#']:not(.headerlink)"):
            target, anchor = link["href"].split("#")
            if anchor.startswith(("thm-", "prop-", "lem-", "cor-", "ex-", "def-", "alg-", "cite-")):
                full = (
                    os.path.normpath(os.path.join(os.path.dirname(name), target))
                    if target
                    else name
                )
                assert f"{full}#{anchor}" in shown, (name, link["href"])


@pytest.fixture(scope="module")
def axe():
    if not AXE.exists():
        unavailable("axe-core is not there. Run `make site`.")
    return AXE.read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize(("device", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_pages_are_sound(browser, site, address, axe, device, scheme):
    """Opened in one scheme; texts are legible in both."""
    width = site_check.WIDTHS[device]
    found = site_check.faults(
        browser, site, address, built_pages(), width=width, scheme=scheme, axe=axe
    )
    assert not found, f"{device}:\n" + "\n".join(found)


@pytest.mark.browser
def test_previews_come_by_mouse_and_key_without_a_server(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "book" / "07_theorem.html").as_uri())
    page.evaluate(site_check.SETTLE)
    for target, words in {
        "a[href*='#lem-gamma']": "Lemma 7.2",
        "a[href*='#cite-']": "Collins",
    }.items():
        link = page.locator(f"article {target}").first
        link.hover()
        page.wait_for_selector("#preview", state="visible")
        assert words in page.locator("#preview").inner_text()
        page.keyboard.press("Escape")
        assert not page.locator("#preview").count()
        page.mouse.move(0, 0)
        page.keyboard.press("Tab")  # from here on, focus is the keyboard's
        link.focus()
        page.wait_for_selector("#preview", state="visible")
        box = page.locator("#preview").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1280
        link.blur()
        assert not page.locator("#preview").count()
    page.close()


@pytest.mark.browser
def test_text_in_pictures_stays_readable_on_a_phone(browser, site, address):
    """At least 9 pixels, by what each picture's record says of its smallest text."""
    options = dict(java_script_enabled=False)  # formulas take most of a page's time
    page = browser.new_page(viewport={"width": 375, "height": 800}, **options)
    for path in notebooks():
        drawn = [
            png
            for cell in Chapter(path).code
            for png in pictures.of(cell["outputs"])
            if "remove-output" not in cell["metadata"].get("tags", [])
        ]
        page.goto(address + path.relative_to(ROOT).with_suffix(".html").as_posix())
        widths = page.eval_on_selector_all(
            "article .cell_output .picture img", "all => all.map(image => image.clientWidth)"
        )
        assert len(widths) == len(drawn), path
        for width, png in zip(widths, drawn, strict=True):
            with Image.open(io.BytesIO(base64.b64decode(png))) as image:
                points, dots = pictures.smallest_text(image), image.info["dpi"][0]
                pixels = points * dots / 72 * width / image.size[0]
            assert pixels >= 8.9 or not points, (path, pixels)
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("screen", [(1280, 800), (375, 667)], ids=["desktop", "phone"])
def test_the_front_pages_first_screen_tells_what_it_is(browser, address, screen):
    """The claim and the doors; where there is room, the interactive with its button as well."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), screen, strict=True)))
    page.goto(address + "book/intro.html")
    shown = ["article h1 ~ p > strong"]
    shown += [f"article table a:has-text('{door}')" for door in ("Read", "Run", "Teach")]
    if screen[0] > 1000:
        shown += [".fl-play", ".fl-drawing svg"]
    for part in shown:
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= screen[1], part
    page.close()


@pytest.mark.browser
def test_wide_tables_fold_on_a_phone_and_are_whole_on_paper(browser, address):
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.goto(address + "book/12_fedavg_vs_one_step.html")
    beyond = """tables => tables.filter(table => table.getBoundingClientRect().right
      > document.documentElement.clientWidth + 1).length"""
    assert page.locator("table.results.wide").count() > 3
    assert page.eval_on_selector_all("table.results.wide", beyond) == 0
    cell = page.locator("table.results.wide td[data-head]").first
    named = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert named.strip('"') == cell.get_attribute("data-head")
    heads = page.locator("table.results.wide thead th:first-child")
    assert heads.count() > 3
    assert all(head.is_visible() for head in heads.all())  # what the rows are
    page.set_viewport_size({"width": 680, "height": 900})  # A4 less its margins
    page.emulate_media(media="print")
    assert page.eval_on_selector_all("table.results", beyond) == 0
    assert page.locator("table.results thead").first.is_visible()
    page.close()


@pytest.mark.browser
def test_print_has_margins_closed_solutions_and_no_box_that_cuts(browser, address):
    page = browser.new_page()
    page.goto(address + "book/07_theorem.html")
    page.evaluate(site_check.SETTLE)
    page.emulate_media(media="print")
    shown = "elements => elements.filter(e => e.getClientRects().length).length"
    assert page.eval_on_selector_all(".solution", shown) == 0
    assert page.eval_on_selector_all(".bd-article h1", shown) == 1
    assert page.eval_on_selector_all("#jb-print-docs-body, .bd-sidebar, .headerlink", shown) == 0
    cut = "elements => elements.filter(e => getComputedStyle(e).overflowX != 'visible').length"
    assert page.eval_on_selector_all("article :is(pre, table, .math, .admonition)", cut) == 0
    margins = page.locator("style[media=print]").inner_text()
    for text in (config()["title"], "7. FedAvg", config()["author"], "CC BY 4.0"):
        assert text in margins
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "answer"),
    {
        "federated": "Federated averaging",
        "balancedness": "(Discrete balancedness)",
        "One condition step size": "Corollary 7.1 (One condition on the step size)",
        "exercise weights": "Exercise 1.1 (The weights matter)",
    }.items(),
)
def test_search_works_without_a_server_and_finds_statements_by_name(browser, site, words, answer):
    page = browser.new_page()
    page.goto((site / "search.html").as_uri() + f"?q={words}")
    page.wait_for_selector(f'ul.search li a:has-text("{answer}")', timeout=10_000)
    page.close()


GOOD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<link rel="icon" href="data:,"><style>body {{ margin: 0 }}</style></head>
<body><main id="top">{}</main></body></html>"""

FAULTS = {
    "external request": '<img alt="a picture" src="http://example.invalid/a.png">',
    "console": "<script>console.error('oh')</script>",
    "page error": "<script>throw new Error('oh')</script>",
    "failed request": '<script src="http://example.invalid/a.js"></script>',
    "console: Failed to load": '<script src="missing.js"></script>',
    "raw TeX": r"<p>so \(x = 1\)</p>",
    "raw TeX or MyST: so $": "<p>so $x = 1$</p>",
    "raw TeX or MyST: see {cite": "<p>see {cite}`somebody`</p>",
    "MathJax error": "<mjx-merror>Undefined control sequence</mjx-merror>",
    "image without alt": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">',
    "broken image": '<img alt="a picture" src="missing.png">',
    "broken link": '<a href="missing.html">there</a>',
    "broken anchor": '<a href="#missing">there</a>',
    "scroll bar": '<mjx-container style="display: block; overflow-x: scroll">x</mjx-container>',
    "tab stop": '<mjx-container tabindex="0">x</mjx-container>',
    "no key": f'<pre style="overflow-x: auto">{"long " * 100}</pre>',
    "heavy": f"<!-- {random.Random(0).randbytes(800_000).hex()} -->",
    "axe: button-name": "<button></button>",
    "axe: color-contrast": "<p>Black.</p><p style='color: #ccc'>Pale.</p>",
    "axe: color-contrast, 1 times, first b, dark": """<p>See <b>this</b>.</p>
      <style>@media (prefers-color-scheme: dark) {
        html { background: #111; color: #eee } b { background: #ddd } }</style>""",
    "overflow: page": '<div style="width: 500px">wide</div>',
    "overflow: <b>": '<p style="overflow: hidden"><b style="padding: 300px">wide</b></p>',
}


@pytest.mark.browser
@pytest.mark.parametrize("fault", FAULTS)
def test_checker_reports_a_page_with(browser, tmp_path: Path, axe, fault):
    (tmp_path / "index.html").write_text(GOOD.format(FAULTS[fault]), encoding="utf-8")
    with site_check.served(tmp_path) as address:
        found = site_check.faults(
            browser, tmp_path, address, ["index.html"], width=375, scheme="light", axe=axe
        )
    assert any(report.startswith(f"index.html: {fault}") for report in found), found


@pytest.mark.browser
def test_checker_passes_a_sound_page(browser, tmp_path: Path, axe):
    body = r'<p>Costs $5 in <code>\(x\)</code>. <a href="#top">Up</a></p>'
    (tmp_path / "index.html").write_text(GOOD.format(body), encoding="utf-8")
    with site_check.served(tmp_path) as address:
        assert not site_check.faults(
            browser, tmp_path, address, ["index.html"], width=375, scheme="dark", axe=axe
        )
