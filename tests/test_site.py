"""The built website: every page, wide and narrow, light and dark, in a real browser."""

import os
import re
from pathlib import Path

import pytest
import site_check
from browser import MISSING
from bs4 import BeautifulSoup
from chapters import Chapter, images
from repository import ROOT, notebooks, pages

SITE = ROOT / "_build" / "html"
REQUIRED = os.environ.get("FEDLIB_REQUIRE_BROWSER") == "1"
SCHEMES = ["light", "dark"]


def built_pages() -> list[str]:
    found = [path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")]
    return sorted(name for name in found if not name.startswith(("_static", "_sources")))


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


@pytest.mark.browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("device", site_check.WIDTHS)
def test_pages_are_sound(browser, site, address, device, scheme):
    width = site_check.WIDTHS[device]
    found = site_check.faults(browser, site, address, built_pages(), width=width, scheme=scheme)
    assert not found, f"{device}, {scheme}:\n" + "\n".join(found)


@pytest.mark.browser
def test_search_works_without_a_server_of_its_own(browser, site, address):
    page = browser.new_page()
    page.goto(address + "search.html?q=federated")
    page.wait_for_selector("ul.search li a", timeout=10_000)
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
    "overflow: page": '<div style="width: 500px">wide</div>',
    "overflow: <b>": '<p style="overflow: hidden"><b style="padding: 300px">wide</b></p>',
}


@pytest.mark.browser
@pytest.mark.parametrize("fault", FAULTS)
def test_checker_reports_a_page_with(browser, tmp_path: Path, fault):
    (tmp_path / "index.html").write_text(GOOD.format(FAULTS[fault]), encoding="utf-8")
    with site_check.served(tmp_path) as address:
        found = site_check.faults(
            browser, tmp_path, address, ["index.html"], width=375, scheme="light"
        )
    assert any(report.startswith(f"index.html: {fault}") for report in found), found


@pytest.mark.browser
def test_checker_passes_a_sound_page(browser, tmp_path: Path):
    body = r'<p>Costs $5 in <code>\(x\)</code>. <a href="#top">Up</a></p>'
    (tmp_path / "index.html").write_text(GOOD.format(body), encoding="utf-8")
    with site_check.served(tmp_path) as address:
        assert not site_check.faults(
            browser, tmp_path, address, ["index.html"], width=375, scheme="dark"
        )
