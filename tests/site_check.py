"""Open a built page in Chromium and list what a reader would find wrong with it."""

import contextlib
import functools
import gzip
import http.server
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from browser import chromium
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing outside this machine
]
WIDTHS = {"desktop": 1280, "phone": 375}
SCHEMES = ["light", "dark"]
# The most that a first view may ask for, in kB as a server would compress them.
SCRIPT_LIMIT, PAGE_LIMIT = 300, 700
COMPRESSED = {".png", ".jpg", ".gif", ".woff", ".woff2"}

# Until formulas and fonts are there: a font that is on its way when the next page is opened counts
# as failed.
SETTLE = """
async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  await new Promise((done) => setTimeout(done, 100));
}
"""
# Pictures and interactives further down come late; here, all of them.
LOAD_ALL = """
async () => {
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  for (const place of document.querySelectorAll(".fl-place")) {
    place.scrollIntoView();
    while (!place.model) await new Promise((done) => setTimeout(done, 20));
  }
  scrollTo(0, 0);
}
"""
# All folds open, and one letter for each formula: thousands of elements draw it, hidden from screen
# readers as a drawing, in the colour of the text.
UNFOLD = """
() => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const formula of document.querySelectorAll("mjx-container")) formula.replaceWith("x");
}
"""
# Contrast costs more than all other rules together and has the same outcome for the same look: the
# text's colour, size and weight, and everything behind it. So axe measures one text of each look.
LOOKS = """
async ([scheme, known]) => {
  const { dataset } = document.documentElement;
  while ((dataset.theme ?? scheme) !== scheme) await new Promise((done) => setTimeout(done, 20));
  const seen = new Set(known), clear = "rgba(0, 0, 0, 0)", behind = new Map([[null, ""]]);
  const under = (element) => {
    if (!behind.has(element)) {
      const { backgroundColor, backgroundImage, opacity, filter } = getComputedStyle(element);
      const own = [backgroundColor, backgroundImage, opacity, filter].join();
      const adds = own === `${clear},none,1,none` ? "" : `${own};`;
      behind.set(element, under(element.parentElement) + adds);
    }
    return behind.get(element);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = new Set();
  while (walker.nextNode())
    if (walker.currentNode.data.trim()) texts.add(walker.currentNode.parentElement);
  for (const element of texts) {
    if (!element.checkVisibility()) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const look = [under(element), color, fontSize, fontWeight].join(" ");
    if (!seen.has(look)) element.dataset[scheme] = "new";
    seen.add(look);
  }
  return [...seen];
}
"""
# Coloured words of code are nothing but text once their colours are looked at.
UNCOLOUR = """
() => {
  const plain = ".highlight span:not([id], [role], [tabindex], [data-light], [data-dark])";
  for (const word of document.querySelectorAll(plain)) word.replaceWith(...word.childNodes);
}
"""
AXE = """
async ([context, options]) => {
  const asked = { resultTypes: ["violations"], preload: false, ...options };
  const { violations } = await axe.run(context, asked);
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return grave.map(
    ({ id, nodes }) => `axe: ${id}, ${nodes.length} times, first ${nodes[0].target.join(" ")}`);
}
"""
CONTRAST = "color-contrast"

# Runs inside the page; returns a list of sentences.
INSPECT = r"""
(phone) => {
  const faults = [];
  const shown = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);
  const article = document.querySelector("article, main") ?? document.body;

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const opaque = "code, pre, script, style, textarea, mjx-container, noscript";
  const raw = /\\[a-zA-Z]{2,}|\\[()[\]]|\$[^$\s][^$]*\$|:::|\{[a-z:]+\}`/;
  while (walker.nextNode()) {
    const { data, parentElement } = walker.currentNode;
    if (raw.test(data) && !parentElement.closest(opaque))
      faults.push(`raw TeX or MyST: ${shown(data)}`);
  }
  for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
    faults.push(`MathJax error: ${shown(error.textContent)}`);

  for (const image of document.images) {
    const name = image.getAttribute("src")?.slice(0, 80);
    if (!image.hasAttribute("alt") || (article.contains(image) && !image.alt.trim()))
      faults.push(`image without alt: ${name}`);
    if (image.complete && !image.naturalWidth) faults.push(`broken image: ${name}`);
  }

  const style = (element) => getComputedStyle(element);
  for (const formula of document.querySelectorAll("mjx-container")) {
    if (formula.scrollWidth > formula.clientWidth + 2) continue;
    const said = shown(formula.textContent);
    if (style(formula).display !== "inline" && formula.offsetHeight - formula.clientHeight > 3)
      faults.push(`scroll bar: under a formula that fits: ${said}`);
    if (formula.tabIndex >= 0) faults.push(`tab stop: a formula that fits: ${said}`);
  }
  for (const box of article.querySelectorAll("*")) {
    const wide = box.scrollWidth > box.clientWidth + 2;
    if (wide && /auto|scroll/.test(style(box).overflowX) && box.tabIndex < 0)
      faults.push(`no key: <${box.localName}> scrolls by mouse alone: ${shown(box.textContent)}`);
  }

  if (phone) {
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth > clientWidth) faults.push(`overflow: page is ${scrollWidth} px wide`);
    const scrolls = (element) => {
      for (let e = element; e && e !== document.body; e = e.parentElement)
        if (/auto|scroll/.test(style(e).overflowX)) return true;
      return false;
    };
    for (const element of article.querySelectorAll("*:not(mjx-assistive-mml *)")) {
      const box = element.getBoundingClientRect();
      if (box.width && box.right > clientWidth + 1 && !scrolls(element)) {
        faults.push(`overflow: <${element.localName}> is cut off: ${shown(element.textContent)}`);
        break;
      }
    }
  }
  return faults;
}
"""


@contextlib.contextmanager
def launched():
    """A running headless Chromium."""
    with sync_playwright() as playwright:
        # With scroll bars, as most desktops show them.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS, ignore_default_args=["--hide-scrollbars"]
        )
        yield browser
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder: Path):
    """Serve a folder on this machine; gives the address."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@functools.cache
def _anchors(path: Path) -> set[str]:
    return set(re.findall(r"\s(?:id|name)=[\"']([^\"']+)[\"']", path.read_text(encoding="utf-8")))


def broken_links(page: Page, folder: Path, address: str) -> list[str]:
    """Links of an open page into the same site that lead nowhere."""
    faults = []
    hrefs = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    for href in sorted(set(hrefs)):
        if not href.startswith(address):
            continue
        parts = urlsplit(href)
        target = folder / unquote(parts.path).lstrip("/")
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            faults.append(f"broken link: {parts.path}")
        elif parts.fragment and unquote(parts.fragment) not in _anchors(target):
            faults.append(f"broken anchor: {parts.path}#{parts.fragment}")
    return faults


@functools.cache
def _kilobytes(path: Path) -> float:
    """Size of a file on its way to a reader."""
    content = path.read_bytes() if path.is_file() else b""
    return len(content if path.suffix in COMPRESSED else gzip.compress(content, 6)) / 1000


def heavy(requested: set[Path]) -> list[str]:
    """What one view of a page loads, if that is too much."""
    script = sum(_kilobytes(path) for path in requested if path.suffix == ".js")
    whole = sum(_kilobytes(path) for path in requested)
    faults = [f"heavy: {script:.0f} kB of script"] if script > SCRIPT_LIMIT else []
    return faults + ([f"heavy: {whole:.0f} kB in all"] if whole > PAGE_LIMIT else [])


def inaccessible(page: Page, axe: str, looks: dict[str, list[str]]) -> list[str]:
    """What axe-core finds serious on an open page, which it changes; by every scheme's colours.

    `looks` holds, by scheme, what was measured on earlier pages, and grows.
    """
    page.evaluate(axe)
    page.evaluate(UNFOLD)
    fresh = []
    for scheme, known in looks.items():
        page.emulate_media(color_scheme=scheme)
        looks[scheme] = page.evaluate(LOOKS, [scheme, known])
        fresh += [scheme] * (len(looks[scheme]) > len(known))
    page.evaluate(UNCOLOUR)
    found = page.evaluate(AXE, ["html", {"rules": {CONTRAST: {"enabled": False}}}])
    for scheme in fresh:
        page.emulate_media(color_scheme=scheme)
        page.evaluate(LOOKS, [scheme, looks[scheme]])  # until the page has changed
        texts = {"include": [f"[data-{scheme}]"]}
        for fault in page.evaluate(AXE, [texts, {"runOnly": [CONTRAST]}]):
            found.append(f"{fault}, {scheme}")
    return found


def faults(
    browser: Browser,
    folder: Path,
    address: str,
    names: list[str],
    *,
    width: int,
    scheme: str,
    axe: str = "",
) -> list[str]:
    """Open pages of the site `folder`, served at `address`; list what is wrong, page by page.

    `axe` is the text of axe-core's script; without it, accessibility is not checked.
    """
    found, requested = [], set()
    looks = {other: [] for other in SCHEMES}
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",  # no colour on its way to another
        service_workers="block",
    )
    context.set_default_timeout(120_000)  # a busy machine is no fault of a page
    page = context.new_page()

    def report(fault: str) -> None:
        found.append(f"{name}: {fault}")

    def admit(request):
        requested.add(folder / unquote(urlsplit(request.url).path).lstrip("/"))
        if not request.url.startswith((address, "data:", "blob:")):
            report(f"external request: {request.url[:100]}")

    page.on("request", admit)
    page.on("console", lambda said: report(f"console: {said.text}") if said.type == "error" else 0)
    page.on("pageerror", lambda error: report(f"page error: {error}"))
    page.on("requestfailed", lambda request: report(f"failed request: {request.url[:100]}"))
    for name in names:
        text = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""
        if re.search(r"http-equiv=.?refresh", text, re.IGNORECASE):
            continue  # leads on to another page, and shows nothing
        requested.clear()
        page.emulate_media(color_scheme=scheme)
        page.goto(address + name)
        page.evaluate(SETTLE)
        inside = heavy(requested)
        page.evaluate(LOAD_ALL)
        inside += page.evaluate(INSPECT, width < 700) + broken_links(page, folder, address)
        if axe:
            inside += inaccessible(page, axe, looks)
        for fault in inside:
            report(fault)
    context.close()
    return found
