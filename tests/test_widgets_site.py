"""The interactives on the built site, in a real browser: every control, by mouse and by key."""

import json
import re

import pytest
from playwright.sync_api import expect
from repository import ROOT, notebooks
from test_site import browser, parsed, site  # noqa: F401
from test_widgets import compare, states

import fedlib as fl

PLACES = {
    "Drift": "02_client_drift",
    "Angle": "04_shared_representation",
    "TwoPlanes": "05_one_step_fails",
    "Dial": "06_two_steps",
    "HeadsInRound": "06_two_steps",
    "Promise": "08_iteration_complexity",
    "FineTuning": "10_fine_tuning",
    "Labels": "11_federated_images",
    "Horizon": "12_fedavg_vs_one_step",
}
TITLE = '.fl-place:has(.fl-title:text-is("{}"))'
every = pytest.mark.parametrize("name", PLACES)

FRAMES = """
async (place) => {
  const times = [];
  await new Promise((done) => {
    let last;
    const tick = (now) => {
      if (last) times.push(now - last);
      last = now;
      const playing = place.querySelector(".fl-play").textContent === "Pause";
      playing ? requestAnimationFrame(tick) : done();
    };
    requestAnimationFrame(tick);
  });
  return times;
}
"""


def test_every_interactive_has_its_place():
    assert set(PLACES) == {kind.__name__ for kind in fl.widgets.KINDS}
    for path in notebooks():
        shown = re.findall(r"fl\.widgets\.([A-Z]\w+)\(", path.read_text(encoding="utf-8"))
        assert {name for name, at in PLACES.items() if at == path.stem} <= set(shown) <= set(PLACES)


@every
def test_page_has_title_drawing_and_sentence_without_scripts(site, name):  # noqa: F811
    places = parsed(f"book/{PLACES[name]}.html").select(".fl-place")
    (place,) = (p for p in places if p.select_one(".fl-title").text == title(name))
    assert len(place.select("svg path, svg circle")) >= 2
    assert len(place.select_one(".fl-sentence").text) > 40
    assert not place.select("input, button, script, [id]")


def test_cells_for_live_kernels_say_so(site):  # noqa: F811
    for page in set(PLACES.values()):
        said = parsed(f"book/{page}.html").find("article").get_text()
        asked = said.count("fl.widgets.try_it(")
        assert said.count("Needs a live kernel (Colab or Jupyter)") == asked > 0


@pytest.fixture(scope="module", params=PLACES)
def live(request, browser, site):  # noqa: F811
    """An interactive on its page, opened as a file, without formulas and without a server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.route("**/mathjax/**", lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(120_000)  # a machine may be busy
    page.name, page.faults, page.asked = request.param, [], []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    address = (site / "book" / f"{PLACES[page.name]}.html").as_uri()
    page.goto(address, wait_until="domcontentloaded")
    page.place = page.locator(TITLE.format(title(page.name)))
    page.place.scroll_into_view_if_needed()
    page.place.locator("form").wait_for()
    yield page
    context.close()


def title(name: str) -> str:
    return re.search(r'title: "(.*?)",', getattr(fl.widgets, name)._esm)[1]


def seen(page) -> tuple[str, str]:
    """The sentence and the drawing, once the next frame is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))")
    parts = [page.place.locator(part) for part in (".fl-sentence", ".fl-drawing")]
    return parts[0].inner_text(), parts[1].inner_html()


def state(page) -> dict:
    names = getattr(fl.widgets, page.name).names()
    read = "(place, names) => names.map((name) => place.model.get(name))"
    return dict(zip(names, page.place.evaluate(read, names), strict=True))


def reset(page) -> None:
    page.place.get_by_role("button", name="Reset").click()
    seen(page)


@pytest.mark.browser
def test_every_control_moves_drawing_and_state(live):
    kind = getattr(fl.widgets, live.name)
    for control in kind().controls:
        reset(live)
        name, field = control["name"], live.place.locator(f"[name={control['name']}]")
        if live.name == "Labels" and name == "concentration":
            live.place.locator("[name=kind]").select_option("dirichlet")
        before = seen(live)
        if "options" in control:
            other = next(o[0] for o in control["options"] if o[0] != state(live)[name])
            field.select_option(other)
            assert state(live)[name] == other
        else:
            shown, views = live.place.locator(f"label:has([name={name}]) output"), {before}
            for key, reached in {"Home": control["min"], "End": control["max"]}.items():
                field.press(key)
                views.add(seen(live))
                assert state(live)[name] == pytest.approx(reached)
                assert field.get_attribute("aria-valuetext") == shown.inner_text()
            assert len(views) > 1, name
            field.press("ArrowLeft")
            assert control["min"] < state(live)[name] < control["max"]
        assert seen(live) != before, name
    reset(live)
    assert state(live) == kind().state
    assert not live.faults
    outside = [url for url in live.asked if not url.startswith(("blob:", "data:", "file:"))]
    assert not outside


@pytest.mark.browser
def test_sentence_and_numbers_are_those_of_the_state(live):
    kind = getattr(fl.widgets, live.name)
    made = [kind(**values) for values in states(kind, 4)]
    stored = [{k: v for k, v in w.get_state().items() if k[0] != "_"} for w in made]
    found = live.evaluate(
        """async ([esm, states]) => {
          const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
          const { default: it } = await import(url);
          const odd = (key, x) => typeof x === "number" && !Number.isFinite(x) ? String(x) : x;
          return JSON.stringify(states.map((state) => {
            const numbers = it.compute(state);
            return { numbers, said: it.say(numbers, state) };
          }), odd);
        }""",
        [kind._esm, stored],
    )
    set_all = "(place, state) => Object.entries(state).forEach((pair) => place.model.set(...pair))"
    for widget, page in zip(made, json.loads(found), strict=True):
        compare(widget, page["numbers"])
        live.place.evaluate(set_all, widget.state)  # as Python does in a live kernel
        assert seen(live)[0] == page["said"]
    reset(live)


@pytest.mark.browser
def test_play_pauses_ends_and_keeps_pace(live):
    play, sentence = live.place.locator(".fl-play"), live.place.locator(".fl-sentence")
    if not play.count():
        pytest.skip("an interactive without motion")
    moved = re.search(r'play: "(\w+)"', getattr(fl.widgets, live.name)._esm)[1]
    position = live.place.locator(f"[name={moved}]")
    reset(live)
    position.press("Home")
    before = position.input_value()
    play.press("Space")
    expect(play).to_have_text("Pause")
    assert sentence.get_attribute("aria-live") == "off"
    live.wait_for_timeout(1000)
    play.press("Space")
    expect(play).to_have_text("Play")
    assert sentence.get_attribute("aria-live") == "polite"
    rest = position.input_value()
    assert rest != before
    live.wait_for_timeout(200)
    assert position.input_value() == rest
    play.click()
    times = sorted(live.place.evaluate(FRAMES))
    seen(live)
    assert position.input_value() == position.get_attribute("max")
    print(f"{live.name}: median frame {times[len(times) // 2]:.0f} ms, of {len(times)}")
    live.emulate_media(reduced_motion="reduce")
    expect(play).to_have_text("Step")
    position.press("Home")
    play.click()
    seen(live)
    first = position.input_value()
    assert first not in (before, position.get_attribute("max"))
    live.wait_for_timeout(200)
    assert position.input_value() == first
    live.emulate_media(reduced_motion="no-preference")
    reset(live)


FITS = """
async (place) => {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)));
  const faults = [], room = place.getBoundingClientRect();
  for (const e of place.querySelectorAll("text, label, p, button, select, .fl-drawing > svg")) {
    const { left, right } = e.getBoundingClientRect();
    if (left < room.left - 1 || right > room.right + 1)
      faults.push(`${e.localName} ${e.textContent.slice(0, 30)}: ${left} to ${right}`);
    if (parseFloat(getComputedStyle(e).fontSize) < 9) faults.push(`small ${e.textContent}`);
  }
  if (room.right > innerWidth) faults.push(`wider than the page: ${room.right}`);
  return faults;
}
"""


@pytest.mark.browser
def test_fits_every_width_and_both_modes(live):
    def bright(text: str) -> bool:
        return sum(map(int, re.findall(r"\d+", text)[:3])) > 384

    for width in (1400, 768, 375):
        live.set_viewport_size({"width": width, "height": 800})
        assert not live.place.evaluate(FITS), width
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    for scheme in ("dark", "light"):
        live.evaluate("(scheme) => (document.documentElement.dataset.theme = scheme)", scheme)
        ink, paper = live.place.locator(".fl-widget").evaluate(colours)
        assert bright(paper) == (scheme == "light") != bright(ink)
    live.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.browser
def test_print_shows_the_picture_and_no_controls(live):
    live.evaluate("() => (document.documentElement.dataset.theme = 'dark')")
    live.emulate_media(media="print")
    assert live.place.locator(".fl-drawing svg").first.is_visible()
    assert live.place.locator(".fl-sentence").is_visible()
    assert not live.place.locator("form").is_visible()
    paper = live.place.locator(".fl-widget").evaluate("e => getComputedStyle(e).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    live.emulate_media(media="screen")


def test_licence_list_names_what_is_served_and_no_more(site):  # noqa: F811
    served = {path.name for path in (site / "_static" / "vendor").iterdir()} - {"fetched"}
    assert served == {"mathjax", "reveal"}
    assert "requirejs" not in (ROOT / "assets" / "licenses.txt").read_text(encoding="utf-8").lower()
