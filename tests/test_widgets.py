"""The interactives: their numbers are fedlib's, their state is Python's, nothing is fetched."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import interactives
import notebooks
import numpy as np
import pytest
import scipy.stats
import traitlets
from repository import ROOT
from repository import notebooks as listed_notebooks

import fedlib as fl
from fedlib.widgets import horizon

KINDS = fl.widgets.KINDS
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SETTINGS = 120

COMPUTE = """
const { esm, states } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const odd = (key, value) =>
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
const address = "data:text/javascript;base64," + Buffer.from(esm).toString("base64");
import(address).then(({ default: it }) => {
  const found = states.map((state) => {
    const numbers = it.compute(state);
    return { numbers, said: it.say(numbers, state), still: it.still(state, 340) };
  });
  process.stdout.write(JSON.stringify(found, odd));
});
"""


@pytest.fixture(scope="module")
def node():
    found = interactives.NODE if interactives.NODE.exists() else shutil.which("node")
    return found or pytest.skip("no Node: run `make test`, which installs it")


def states(kind, count: int) -> list[dict]:
    """Random places of all controls, the corners among them."""
    rng, found = np.random.default_rng(0), [{}]
    controls = {c["name"]: c for c in kind().controls}
    while len(found) < count:
        state = {}
        for name, c in controls.items():
            if "options" in c:
                state[name] = str(rng.choice([value for value, _ in c["options"]]))
            elif c["log"]:
                value = c["min"] * (c["max"] / c["min"]) ** rng.uniform()
                state[name] = float(np.clip(float(f"{value:.3g}"), c["min"], c["max"]))
            else:
                last = round((c["max"] - c["min"]) / c["step"])
                at = rng.choice([0, last]) if rng.uniform() < 0.15 else rng.integers(0, last + 1)
                value = min(c["max"], c["min"] + c["step"] * int(at))
                state[name] = type(c["value"])(round(value, 6))
        found.append(state)
    return found


def sent(widget) -> dict:
    """What a page gets of a widget."""
    state = widget.get_state()
    return {name: state[name] for name in state if not name.startswith("_") and name != "layout"}


@pytest.fixture(scope="module")
def computed(node):
    """Numbers, sentences and stills of a kind at random settings, by JavaScript."""
    cache = {}

    def of(kind):
        if kind not in cache:
            made = [kind(**state) for state in states(kind, SETTINGS)]
            text = json.dumps({"esm": kind._esm, "states": [sent(widget) for widget in made]})
            options = dict(capture_output=True, text=True, encoding="utf-8")
            done = subprocess.run([node, "-e", COMPUTE], input=text, **options)
            assert done.returncode == 0, done.stderr
            cache[kind] = made, json.loads(done.stdout)
        return cache[kind]

    return of


def numbers(value) -> np.ndarray:
    """A list of numbers of any depth, as JSON without infinities holds it."""
    as_text = json.dumps(value).replace('"Infinity"', "1e999").replace('"-Infinity"', "-1e999")
    return np.array(json.loads(as_text), dtype=float)


def compare(widget, found: dict) -> None:
    """Hold the page's numbers against fedlib's."""
    for name, value in widget.numbers().items():
        np.testing.assert_allclose(
            numbers(found[name]), value, rtol=0, atol=1e-9, err_msg=f"{widget} {name}"
        )


@pytest.mark.slow
@kinds
def test_javascript_computes_what_fedlib_does(kind, computed):
    made, found = computed(kind)
    for widget, page in zip(made, found, strict=True):
        compare(widget, page["numbers"])


BROKEN = {
    "Angle": ("missing ** 2 / 2", "missing ** 2 / 2.0001"),
    "Dial": ("(1 - share) / OUTPUTS +", "(1.0001 - share) / OUTPUTS +"),
    "Drift": ("add(eye(2), A, -lr)", "add(eye(2), A, -1.0001 * lr)"),
    "FineTuning": ("n - p - 1", "n - p - 1.0001"),
    "HeadsInRound": ("head = next;", "head = next.map((x) => 1.0001 * x);"),
    "Horizon": ("sum + (value - middle) ** 2", "sum + 1.0001 * (value - middle) ** 2"),
    "Labels": ("Math.log(p)", "Math.log(1.0001 * p)"),
    "Promise": ("12 * eta", "12.001 * eta"),
    "TwoPlanes": ("r[l * c + j] = lr * sum;", "r[l * c + j] = 1.0001 * lr * sum;"),
}


@kinds
def test_a_module_that_is_off_by_a_little_is_caught(kind, node):
    """The negative control: with one number changed by a ten-thousandth, the comparison fails."""
    old, new = BROKEN[kind.__name__]
    assert old in kind._esm
    text = json.dumps({"esm": kind._esm.replace(old, new), "states": [sent(kind())]})
    done = subprocess.run([node, "-e", COMPUTE], input=text, capture_output=True, text=True)
    (page,) = json.loads(done.stdout)
    with pytest.raises(AssertionError):
        compare(kind(), page["numbers"])


def long_record(seeds=(0, 1, 2), points=(500, 1000, 2000)) -> dict:
    """A table of ``python -m studies long_run``; the better step size is 0.1, the better head 2."""
    rows = []
    for regime, classes, tau, seed in itertools.product(
        ("shared", "private"), (5, 20, 80), (1, 10, 50), seeds
    ):
        for lr, steps in itertools.product((0.05, 0.1), points):
            score = 0.2 + tau / 500 + seed**2 / 100 + steps / 20_000 + classes / 1000
            head = {"validation": [None, lr, lr / 2], "unseen": [0.9, round(score, 5), 0.8]}
            run = dict(federation=[regime, classes, 100, 0.0], local_steps=tau, client_lr=lr)
            if lr < 0.1:
                head["unseen"] = [0.9, 0.9, 0.9]
            rows.append(run | dict(seed=seed, variant="plain", steps=steps, head=head))
    rows.append({**rows[0], "variant": "augmented", "head": {"validation": [1], "unseen": [1]}})
    rows.append({**rows[0], "steps": 4000})  # no other run is that far
    rows.append({key: rows[0][key] for key in rows[0] if key != "head"} | {"diverged": "early"})
    return {"rows": rows}


def test_long_runs_are_shown_as_soon_as_three_seeds_have_them(monkeypatch, node):
    found = horizon.long_runs(long_record())
    assert found["points"] == found["scored"] == [500, 1000, 2000]
    quantile = float(scipy.stats.t.ppf(0.975, 2))
    monkeypatch.setattr(horizon, "runs", lambda: found | {"t": quantile})
    widgets = [
        fl.widgets.Horizon(regime=r, steps=s) for r in ("shared", "private") for s in (750, 2000)
    ]
    assert widgets[0].numbers()["here"] == pytest.approx(
        np.array([1, 10, 50]) / 500 + 0.2467, abs=1e-3
    )
    assert widgets[0].numbers()["lead"] == pytest.approx([49 / 500, 0], abs=1e-4)
    text = json.dumps({"esm": fl.widgets.Horizon._esm, "states": [sent(w) for w in widgets]})
    done = subprocess.run([node, "-e", COMPUTE], input=text, capture_output=True, text=True)
    for widget, page in zip(widgets, json.loads(done.stdout), strict=True):
        compare(widget, page["numbers"])
        assert "the mean of three seeds" in page["said"]
        assert "NaN" not in page["still"]
    assert horizon.long_runs(long_record(seeds=(0, 1))) is None
    assert horizon.long_runs(long_record(points=(500,))) is None


@kinds
def test_sentences_are_plain_and_drawings_sound(kind, computed):
    for page in computed(kind)[1]:
        assert 40 < len(page["said"]) < 400
        assert page["said"].endswith((".", "!"))
        for text in (page["said"], page["still"]):
            assert not re.search(r"NaN|undefined|Infinity|\[object|\be[-+]\d", text), text[:2000]
        assert page["still"].count("<svg") == page["still"].count("</svg>")
    assert len({page["said"] for page in computed(kind)[1]}) > 20


@kinds
def test_module_needs_no_other(kind):
    assert not re.search(r"^\s*import\b|\bfetch\(|https?:", kind._esm, re.MULTILINE)
    assert kind._esm.count("export ") == 1
    assert len(kind._esm) < 40_000


@kinds
def test_state_is_set_read_and_shown(kind):
    name, control = next((c["name"], c) for c in kind().controls if "options" not in c)
    new, other = control["max"], control["min"]
    if new == kind().state[name]:
        new, other = other, new
    widget = kind(**{name: new})
    assert widget.state[name] == new != kind().state[name]
    assert repr(widget) == f"{kind.__name__}({name}={new!r})"
    assert repr(kind()) == f"{kind.__name__}()"
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), names=name)
    widget.set_state({name: other})  # as the page sends it
    assert seen == [widget.state[name]] == [other]


@kinds
def test_controls_say_what_they_move(kind):
    for control in kind().controls:
        assert 3 <= len(control["label"]) <= 34
        assert control["name"] in kind.__doc__, "every control is an argument in the docstring"


@kinds
def test_values_out_of_range_are_refused(kind):
    for control in kind().controls:
        wrong = "nothing" if "options" in control else control["max"] + 1
        with pytest.raises(traitlets.TraitError, match=rf"Invalid {control['name']}=.*\. Use .*\."):
            kind(**{control["name"]: wrong})
    with pytest.raises(TypeError, match="Invalid colour=1: .* has no such control. Use "):
        kind(colour=1)


def test_import_of_fedlib_leaves_widgets_alone():
    unwanted = {"anywidget", "ipywidgets", "fedlib.widgets"}
    code = f"import sys, fedlib; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_missing_package_is_named_with_its_remedy():
    code = (
        "import sys; sys.modules['anywidget'] = None\nimport fedlib\n"
        "try: fedlib.widgets\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "needs the package anywidget" in done.stdout
    assert "pip install anywidget" in done.stdout


def test_unknown_name_of_fedlib_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fl.nothing


# ---- Sliders of a live kernel ----


def test_try_it_shows_what_a_function_prints_draws_and_returns():
    import matplotlib.pyplot as plt

    def own(n, word="a"):
        print(n * word)
        plt.subplots()[1].plot([0, n])
        return n + 0.5

    sliders = fl.widgets.try_it(own, n=(1, 9), word=["a", "b"])
    n, word, text, pictures = sliders.children
    n.value, word.value = 3, "b"
    assert text.value == "<pre>bbb\n3.5</pre>"
    assert len(pictures.children) == 1
    assert bytes(pictures.children[0].value).startswith(b"\x89PNG")
    assert not plt.get_fignums()
    assert repr(sliders) == "Needs a live kernel (Colab or Jupyter): sliders for n, word."


# ---- What a notebook keeps, and what a page shows of it ----


def stored() -> dict:
    """A notebook in which an interactive and a slider were shown."""

    def model(module, **state):
        return {
            "model_module": module,
            "model_name": "M",
            "model_module_version": "1",
            "state": state,
        }

    def cell(key, text):
        data = {notebooks.WIDGET_VIEW: {"model_id": key, "version_major": 2, "version_minor": 0}}
        output = {
            "output_type": "display_data",
            "metadata": {},
            "data": data | {"text/plain": text},
        }
        return {
            "cell_type": "code",
            "id": text,
            "metadata": {},
            "source": "x",
            "outputs": [output],
        } | {"execution_count": 1}

    planes = fl.widgets.TwoPlanes()
    state = {
        "f" * 32: model("@jupyter-widgets/controls", value=3),
        "b" * 32: model("@jupyter-widgets/base"),
        "a" * 32: model(
            "anywidget", layout="IPY_MODEL_" + "b" * 32, _esm=planes._esm, **sent(planes)
        ),
    }
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# T"}
    return {
        "cells": [title, cell("a" * 32, "planes"), cell("f" * 32, "slider")],
        "metadata": {"widgets": {notebooks.WIDGET_STATE: {"state": state, "version_major": 2}}},
    }


def test_notebooks_keep_interactives_and_drop_dead_sliders():
    text = notebooks.normalise(stored(), ROOT / "book" / "x.ipynb")
    notebook = json.loads(text)
    state = notebook["metadata"]["widgets"][notebooks.WIDGET_STATE]["state"]
    assert sorted(state) == [f"{number:032x}" for number in (0, 1)]
    assert [model["model_module"] for model in state.values()] == [
        "@jupyter-widgets/base",
        "anywidget",
    ]
    outputs = {c["id"]: c["outputs"][0]["data"] for c in notebook["cells"] if c.get("outputs")}
    assert (
        state[outputs["planes"][notebooks.WIDGET_VIEW]["model_id"]]["model_module"] == "anywidget"
    )
    assert list(outputs["slider"]) == ["text/plain"]
    again = json.loads(text)
    for c in again["cells"]:
        c["source"] = "".join(c["source"])
    assert notebooks.normalise(again, ROOT / "book" / "x.ipynb") == text


def test_stored_modules_are_those_of_the_library():
    count = 0
    for path in listed_notebooks():
        text = path.read_text(encoding="utf-8")
        stored = interactives.states(json.loads(text))
        count += sum(model["model_module"] == "anywidget" for model in stored.values())
        if stored:
            assert interactives.renew(text) == text, f"{path.name}: run `make format`."
    assert count >= len(KINDS)


def test_page_holds_drawing_and_sentence_before_any_script(node):
    view = (
        '<p>a</p><script type="application/vnd.jupyter.widget-view+json">{"model_id": "m"}</script>'
    )
    planes = fl.widgets.TwoPlanes(local_steps=1)
    state = sent(planes) | {"_esm": planes._esm, "_css": planes._css}
    body = interactives.place(view + view, {"m": {"state": state}})
    assert body.count('class="fl-place" data-model="m"') == 2
    assert body.count("<style>") == 1
    assert body.count("With one local step") == 2
    assert "<script" not in body
