"""The notebook editions: plain Markdown, every link on the site, no solution for students."""

import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import editions
import pytest
import site_check
from bs4 import BeautifulSoup
from chapters import Chapter
from colab import raw_markup
from myst import CODE, EQUATION, SPAN, Plain, Target
from repository import ROOT, config, notebooks, pin, setup_cell
from test_site import unavailable

SITE = config()["html"]["baseurl"]
LABELS = editions.targets()
PAGES = {path: editions.translator(path, ROOT, LABELS) for path in notebooks()}
paths = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
both = pytest.mark.parametrize("edition", editions.EDITIONS)


@cache
def made(path: Path, edition: str) -> dict:
    return editions.plain(path, edition, "fedlib", PAGES[path])


def text(notebook: dict) -> str:
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join(cell["source"] for cell in cells)


def formulas(source: str) -> Counter:
    """Every formula of a text, without what only places it on a page."""
    source = CODE.sub("", EQUATION.sub(lambda found: f"$${found['formula']}$$", source))
    spans = [m.group() for m in SPAN.finditer(source) if not (m["role"] or m["ticks"])]
    return Counter("".join(re.sub(r"\\tag\{[^}]*\}", "", span).split()) for span in spans)


@paths
@both
def test_nothing_of_myst_is_left(path, edition):
    assert raw_markup(made(path, edition)) == []


@pytest.mark.parametrize(
    "raw",
    [
        ":::{prf:theorem} A\nb\n:::",
        "```{note}\na\n```",
        "as {cite:p}`someone` said",
        "see [here](#thm-x)",
        "see [there](02_other.ipynb)",
        "(label)=\n# Title",
        ":class: dropdown",
        "$$ a $$ (eq-a)",
        "{{ value }}",
    ],
)
def test_raw_markup_is_seen(raw):
    cell = {"cell_type": "markdown", "source": raw}
    assert raw_markup({"cells": [cell]})
    code = {"cell_type": "markdown", "source": f"````text\n{raw}\n````"}
    assert not raw_markup({"cells": [code]})


@paths
def test_every_formula_is_intact(path):
    source = Chapter(path)
    captions = [
        cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "")
        for cell in source.code
    ]
    titles = [d.title for d in source.directives if d.name != "solution"]
    whole = re.sub(r"^(:{3,}\{[\w:]+\}).*$", r"\1", source.text, flags=re.MULTILINE)
    expected = formulas("\n\n".join([whole, *titles, *captions]))
    assert formulas(text(made(path, "colab"))) == expected


@paths
def test_students_see_no_solution(path):
    student = text(made(path, "student"))
    held = [item for item in Chapter(path).directives if item.name == "solution"]
    for item in held:
        for paragraph in PAGES[path].text(item.body).split("\n\n"):
            if len(paragraph) > 40:
                assert paragraph not in student, f"{item.title}: {paragraph[:60]}"
    assert "Solution to" not in student
    exercises = [item for item in Chapter(path).directives if item.name == "exercise"]
    assert student.count(editions.ANSWER) == len(exercises)
    colab = text(made(path, "colab"))
    assert colab.count("<details><summary>Solution to") == len(held)
    assert colab.count("<details>") == colab.count("</details>")


@paths
@both
def test_exercises_keep_their_hints_and_their_programs_start_in_a_cell(path, edition):
    exercises = [item for item in Chapter(path).directives if item.name == "exercise"]
    notebook = made(path, edition)
    hints = [d for item in exercises for d in editions.directives(item.body)]
    assert text(notebook).count("<details><summary>Hint</summary>") == len(hints)
    starters = [code for item in exercises for code in editions.PYTHON.findall(item.body)]
    cells = [c["source"] for c in notebook["cells"] if c["source"].startswith("# Exercise ")]
    assert [cell.partition("\n")[2] for cell in cells] == [code.strip("\n") for code in starters]
    for number, cell in enumerate(notebook["cells"]):
        if cell["source"].startswith("# Exercise "):  # below its exercise, above any solution
            above = notebook["cells"][number - (2 if edition == "student" else 1)]["source"]
            assert above.startswith(f"**{cell['source'].partition(chr(10))[0][2:]} (")


@paths
@both
def test_code_and_outputs_are_those_of_the_book(path, edition):
    def held(cells):
        return [
            (cell["source"], cell["outputs"])
            for cell in cells
            if cell["cell_type"] == "code" and "Colab set-up" not in cell["source"]
        ]

    cells = [c for c in made(path, edition)["cells"] if not c["source"].startswith("# Exercise ")]
    assert held(cells) == held(editions.load(path)["cells"])


@paths
@both
def test_cells_have_names_of_their_own(path, edition):
    names = [cell["id"] for cell in made(path, edition)["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)


@pytest.mark.browser  # needs the built site
@paths
def test_links_and_numbers_are_the_sites(path):
    """Every address exists, and a statement's number there is the one in the notebook."""
    html = ROOT / "_build" / "html"
    if not (html / "index.html").exists():
        unavailable("the site is not built. Run `make site`.")
    soups = {}
    for address in set(re.findall(rf"\]\({re.escape(SITE)}([^)]*)\)", text(made(path, "colab")))):
        page, _, anchor = address.partition("#")
        if page not in soups:
            soups[page] = BeautifulSoup((html / page).read_text("utf-8"), "html.parser")
        if anchor:
            assert soups[page].find(id=anchor), address
    own = BeautifulSoup(
        (html / path.relative_to(ROOT).with_suffix(".html")).read_text("utf-8"), "html.parser"
    )
    prefix = f"{SITE}{path.relative_to(ROOT).with_suffix('.html').as_posix()}#"
    compared = 0
    for label, target in LABELS.items():
        numbered = re.fullmatch(r"(\w+) (\d+(?:\.\d+)*)", target.name)  # warm-ups have none
        if not target.address.startswith(prefix) or not numbered:
            continue
        kind, number = numbered.groups()
        compared += 1
        element = own.find(id=target.address.removeprefix(prefix))
        if kind == "Equation":
            shown = element.select_one(".eqno").get_text()
        elif kind == "Figure":
            shown = element.select_one(".caption-number").get_text()
        else:
            shown = element.select_one(".admonition-title").get_text()
        assert re.search(r"\d+(\.\d+)*", shown).group() == number, label
    assert compared or not path.stem[0].isdigit()


# ---- The translator ----


@pytest.fixture
def plain():
    labels = {
        "thm-x": Target("Theorem 1.2", "https://s/a.html#thm-x"),
        "eq-x": Target("Equation 1.3", "https://s/a.html#eq-x"),
        "ex-x": Target("Exercise 1.4", "https://s/a.html#ex-x"),
    }
    return Plain(
        labels, lambda a: f"https://s/{a}", lambda k: (k.title(), "2020", f"https://s/{k}")
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{cite:t}`ann`", "[Ann (2020)](https://s/ann)"),
        ("{cite:p}`ann,bob`", "([Ann, 2020](https://s/ann); [Bob, 2020](https://s/bob))"),
        ("{cite:p}`ann` and `code`", "([Ann, 2020](https://s/ann)) and `code`"),
        ("[the $x$](#thm-x)", "[the $x$](https://s/a.html#thm-x)"),
        ("`[a](#thm-x)`", "`[a](#thm-x)`"),
        ("{prf:ref}`thm-x`", "[Theorem 1.2](https://s/a.html#thm-x)"),
        ("{ref}`it <thm-x>`", "[it](https://s/a.html#thm-x)"),
        ("(place)=\n## Title", "## Title"),
        ("% a comment\nText", "Text"),
        ("$$ a $$ (eq-x)", "$$ a \\tag{1.3}\n$$"),
        ("$$ a $$\n\nand\n\n$$ b $$ (eq-x)", "$$ a $$\n\nand\n\n$$ b \\tag{1.3}\n$$"),
        ("```python\n{cite:p}`ann`\n```", "```python\n{cite:p}`ann`\n```"),
        (
            ":::{prf:theorem} Name $y$\n:label: thm-x\n\nLet $a\nb$.\n\n$$\na\\\\\nb\n$$\n:::",
            "> **Theorem 1.2 (Name $y$).** Let $a b$.\n>\n> $$ a\\\\ b $$",
        ),
        (":::{prf:proof}\n- one\n:::", "*Proof.*\n\n- one"),
        (
            "::::{note}\n:::{prf:proof}\nA.\n:::\n::::",
            "> **Note.** *Proof.* A.",
        ),
        (
            ":::{admonition} More\n:class: tip dropdown\nA.\n:::",
            "<details><summary>More</summary>\n\nA.\n\n</details>",
        ),
        (
            ":::{solution} ex-x\n:class: dropdown\nA.\n:::",
            "<details><summary>Solution to Exercise 1.4</summary>\n\nA.\n\n</details>",
        ),
    ],
)
def test_translation(plain, source, expected):
    assert plain.text(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (":::{tab-set}\na\n:::", "Invalid directive tab-set.*Use one"),
        ("{kbd}`a`", "Invalid role kbd.*Use one"),
        ("[a](#thm-none)", "Invalid label thm-none"),
    ],
)
def test_what_is_not_known_is_refused(plain, source, message):
    with pytest.raises(ValueError, match=message):
        plain.text(source)


def test_a_link_to_no_page_is_refused():
    with pytest.raises(ValueError, match="Invalid link 99_none.ipynb"):
        next(iter(PAGES.values())).text("[a](99_none.ipynb)")


# ---- What the notebooks install ----


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_a_tag_pins_what_is_installed_and_else_the_commit(tmp_path):
    assert pin(tmp_path) == ""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{40}", pin(tmp_path))
    git(tmp_path, "tag", "v1.0")
    assert pin(tmp_path) == "v1.0"


def test_what_is_written_installs_what_is_asked(tmp_path):
    written = editions.write(tmp_path, "https://school.example/fedlib-1.0-py3-none-any.whl")
    assert {path.parent.name for path in written} == set(editions.EDITIONS)
    for path in written:
        cells = editions.load(path)["cells"]
        (setup,) = [cell for cell in cells if editions.is_colab_cell(cell)]
        assert '%pip install -q "https://school.example/fedlib-1.0' in setup["source"]
        assert f"/{path.parent.name}/{path.name})" in cells[0]["source"]
    editions.write(tmp_path)
    (setup,) = [c for c in editions.load(written[0])["cells"] if editions.is_colab_cell(c)]
    at = f"@{pin()}" if pin() else ""
    assert f'"git+{config()["repository"]["url"]}{at}"' in setup["source"]


@pytest.mark.slow
def test_the_wheel_on_a_website_holds_library_and_results(tmp_path):
    """The path without a public repository, as README.md tells it."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("no pip in this environment")
    made = [*pip, "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, str(ROOT)]
    if subprocess.run(made, capture_output=True).returncode:
        pytest.skip("no network to build a wheel")
    (wheel,) = tmp_path.glob("fedlib-*.whl")
    lib = tmp_path / "lib"
    with site_check.served(tmp_path) as address:
        where = f"{address}{wheel.name}"
        setup = setup_cell(where)
        assert f'%pip install -q "{where}"' in setup
        subprocess.run([*pip, "install", "-q", "--no-deps", "--target", lib, where], check=True)
    code = "import fedlib as fl; print(fl.__file__, len(fl.load_result('puzzle')))"
    shown = subprocess.check_output(
        [sys.executable, "-c", code], text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": lib}
    )
    assert shown.startswith(str(lib))


def test_binder_installs_the_library_and_nothing_of_the_website(tmp_path):
    editions.write(tmp_path)
    text = (tmp_path / "binder" / "requirements.txt").read_text("utf-8")
    assert f"git+{config()['repository']['url']}@{pin()}\n" in text
    asked = re.findall(r"^[\w-]+", text, re.MULTILINE)
    assert not [name for name in asked if re.search("sphinx|book|pytest", name)]
    assert "pytorch-cpu" in (tmp_path / "binder" / "environment.yml").read_text("utf-8")


def test_publishing_puts_the_notebooks_on_a_branch_of_origin(tmp_path):
    """As the workflow does it: one commit, no history, whatever the branch held before."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    subprocess.run(["git", "init", "-q", "--bare", origin], check=True)
    git(tmp_path, "clone", "-q", origin, clone)
    git(clone, "commit", "-q", "--allow-empty", "-m", "first")
    (clone / "tools").mkdir()
    script = clone / "tools" / "publish"
    script.write_bytes((ROOT / "tools" / "publish").read_bytes())
    for content in ("one", "two"):
        (clone / "dist" / "colab").mkdir(parents=True, exist_ok=True)
        (clone / "dist" / "colab" / "a.ipynb").write_text(content)
        subprocess.run(["bash", script], check=True, capture_output=True)
        ask = ["git", "-C", origin]
        held = subprocess.check_output([*ask, "show", "notebooks:colab/a.ipynb"], text=True)
        assert held == content
        assert subprocess.check_output([*ask, "rev-list", "--count", "notebooks"]) == b"1\n"
