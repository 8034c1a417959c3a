"""What is installed: pinned, whole, and the same in every file that says so."""

import re
from importlib.metadata import distribution

import lock
import pytest
import versions
from environment import fault, requirements
from packaging.requirements import Requirement
from packaging.version import Version
from repository import ROOT


def brought_along(names: set[str]) -> set[str]:
    """The packages that these need here, and those that they need, and so on."""
    found, new = set(), set(names)
    while new:
        found |= new
        needed = [Requirement(text) for name in new for text in distribution(name).requires or []]
        here = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
        new = {lock.normal(r.name) for r in here} - found
    return found


def test_every_package_that_make_installs_is_pinned():
    if fault():
        pytest.skip("not the environment that make makes")
    pinned = lock.constraints()
    asked = {lock.normal(name) for name in requirements()}
    assert brought_along(asked) - set(pinned) <= lock.LEFT_OUT


def test_constraints_agree_with_requirements():
    pinned = lock.constraints()
    for name, version in requirements().items():
        assert pinned[lock.normal(name)] == version
    assert not any("+" in version for version in pinned.values())  # no build of one machine


def test_every_pin_has_hashes():
    hashes = lock.hashes()
    assert all(hashes.values())
    assert set(lock.constraints().items()) <= set(hashes)


def test_every_requirement_is_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if line and not line.startswith(("#", "-e ."))]
    assert len(named) == len(requirements())


def test_lower_bounds_admit_what_the_book_and_colab_have():
    colab = versions.pins("colab")
    for name, bound in versions.bounds().items():
        assert Version(bound) <= Version(requirements()[name])
        assert Version(bound) <= Version(colab[name]), f"Colab would replace its {name}"


def test_the_oldest_environment_is_the_lower_bounds():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in versions.pins("oldest").items():
        assert f'"{name}>={version}"' in text or requirements()[name] == version


@pytest.mark.parametrize("name", versions.PYTHON)
def test_other_environments_have_the_books_tools(name):
    book, other = requirements(), versions.pins(name)
    assert set(versions.TOOLS) <= set(other)
    assert all(other[tool] == book[tool] for tool in ("pytest", "nbval", "hypothesis", "beartype"))


def test_every_action_of_a_workflow_is_named_by_its_commit():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for used in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", used), f"{path.name}: {used}"
