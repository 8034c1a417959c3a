"""The Makefile: what a caller gives is text, and an environment from elsewhere is noticed."""

import os
import shutil
import subprocess
from pathlib import Path

import environment
import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on the path")

# In place of Python: it writes down what it is asked, and says that the environment is as SOUND.
STAND_IN = """#!/bin/sh
case "$*" in "-I tools/environment.py"|"-m pip --version") exit {code};; esac
for word in "$@"; do printf '%s\\0' "$word" >> asked; done
"""
HOSTILE = [
    "$(touch hacked)",
    "$(shell touch hacked)",
    "$$(touch hacked)",
    "`touch hacked`",
    "'; touch hacked; '",
    '"; touch hacked; "',
    "\\'; touch hacked #",
    "x\ntouch hacked\n",
]


@pytest.fixture
def folder(tmp_path):
    """A checkout on an awkward path, with stand-ins for the programs of its environment."""
    made = tmp_path / 'it\'s a "book"'
    (made / ".venv" / "bin").mkdir(parents=True)
    pins = ("requirements.txt", "constraints.txt", "requirements-lock.txt")
    for name in ("Makefile", *pins, "pyproject.toml"):
        shutil.copyfile(ROOT / name, made / name)
    (made / "_build").mkdir()
    for name in ("python", "ruff", "jupyter-book"):
        stand_in(made, name, code=0)
    (made / "assets" / "vendor").mkdir(parents=True)
    shutil.copyfile(ROOT / "assets" / "package-lock.json", made / "assets" / "package-lock.json")
    (made / "tools").mkdir()
    (made / "tools" / "vendor.py").touch()
    for stamp in (".venv/installed", "assets/vendor/fetched"):
        (made / stamp).touch()
    return made


def stand_in(folder: Path, name: str, code: int) -> None:
    program = folder / ".venv" / "bin" / name
    program.write_text(STAND_IN.format(code=code))
    program.chmod(0o755)


def make(folder: Path, *arguments: str, **variables: str) -> str:
    """Run make there; return all that it said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=clean | {"PYTHON": ".venv/bin/python"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_bytes().decode().split("\0")[:-1]


@pytest.mark.parametrize("given", HOSTILE)
def test_a_url_is_text(folder, given):
    for arguments, variables in ([[f"URL={given}"], {}], [[], {"URL": given}]):
        (folder / "asked").unlink(missing_ok=True)
        make(folder, "retarget", *arguments, **variables)
        assert not (folder / "hacked").exists()
        assert asked(folder) == ["tools/retarget.py", given]


@pytest.mark.parametrize("given", HOSTILE)
@pytest.mark.parametrize(
    ("goal", "name"),
    [
        ("refresh", "NB"),
        ("colab", "NB"),
        ("chapter", "NB"),
        ("new-chapter", "NAME"),
        ("results", "NAME"),
        ("versions", "NAME"),
        ("serve", "PORT"),
    ],
)
def test_no_argument_of_make_is_run(folder, goal, name, given):
    make(folder, goal, f"{name}={given}")
    assert not (folder / "hacked").exists()
    assert given.split()[0] in " ".join(asked(folder))


@pytest.mark.parametrize("given", HOSTILE)
def test_what_tools_read_from_their_environment_is_text(folder, given):
    for goal in ("retarget", "notebooks"):
        make(folder, goal, f"SITE={given}", f"INSTALL={given}")
        assert not (folder / "hacked").exists()


def test_several_notebooks_are_several_arguments(folder):
    make(folder, "refresh", "NB=book/a.ipynb book/b.ipynb")
    assert asked(folder) == ["tools/refresh.py", "book/a.ipynb", "book/b.ipynb"]


def test_every_stored_experiment_is_run_again(folder):
    make(folder, "results")
    stored = {path.stem for path in (ROOT / "book" / "results").glob("*.json")} - {"benchmarks"}
    assert {name for name in asked(folder) if name in stored} == stored


def test_a_sound_environment_is_kept(folder):
    assert "Making the environment" not in make(folder, "check", "-n")


@pytest.mark.parametrize("state", ["moved", "without pip", "without Python"])
def test_an_environment_from_elsewhere_or_broken_is_made_again(folder, state):
    if state == "without Python":
        (folder / ".venv" / "bin" / "python").unlink()
    else:
        stand_in(folder, "python", code=1)
    if state == "without pip":
        (folder / ".venv" / "installed").unlink()
    said = make(folder, "check", "-n")
    assert "rm -rf .venv" in said
    assert "-m venv .venv" in said
    assert "pip install" in said
    assert "rm -rf .venv\n" not in make(folder, "help", "-n")


def test_an_installation_that_was_cut_short_goes_on(folder):
    """Or was begun by hand, with a PyTorch of one's own choice."""
    (folder / ".venv" / "installed").unlink()
    said = make(folder, "check", "-n")
    assert "pip install" in said
    assert "rm -rf .venv" not in said


def test_an_environment_is_made_on_an_awkward_path_with_an_awkward_python(folder):
    """Python's own path may hold a space, too."""
    shutil.rmtree(folder / ".venv")
    awkward = folder / "my python"
    awkward.write_text(STAND_IN.format(code=0) + "if [ $2 = venv ]; then cp -R given .venv; fi\n")
    awkward.chmod(0o755)
    (folder / "given" / "bin").mkdir(parents=True)
    shutil.copy(awkward, folder / "given" / "bin" / "python")
    make(folder, ".venv/installed", f"PYTHON={awkward}")
    words = asked(folder)
    assert words[words.index("venv") + 1] == ".venv"
    assert words[words.index("--constraint") + 1] == "constraints.txt"


def test_packages_are_installed_by_their_hashes_if_asked_for(folder):
    (folder / ".venv" / "installed").unlink()
    make(folder, ".venv/installed", HASHES="1")
    words = asked(folder)
    lock = words.index("--require-hashes")
    assert words[lock + 2] == "requirements-lock.txt"
    assert words[-3:] == ["--no-deps", "--editable", "."]


def test_this_environment_holds_this_library():
    assert environment.library() == ROOT


def test_a_copied_clone_is_told_where_its_library_is(tmp_path):
    message = f"installed from {ROOT}, not from {tmp_path}. Use `make clean`"
    assert message in environment.fault(tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "library", lambda: tmp_path)
    (tmp_path / "requirements.txt").write_text("numpy==2.0\nno-such-package==1.0 # why\n")
    assert "no-such-package is not installed" in environment.fault(tmp_path)
