"""The page of all public names has every one of them, once."""

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from test_site import unavailable

import fedlib as fl
from fedlib import widgets

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "book" / "api.md"
ROOMS = re.findall(r"^\.\. currentmodule:: (\S+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
ENTRIES = [
    (module, name)
    for module, room in ROOMS
    for name in re.findall(r"^\.\. (?:auto|py:)\w+:: (\w+)$", room, re.M)
]
CONSTANTS = {"KINDS", "COLORS", "PROVENANCE", "UNTRAINED", "CENTRALISED", "MOST_STEPS"}
CONSTANTS |= {"DIGITS", "METHODS", "PARTS", "REGIMES", "SYMBOLS"}
CONSTANTS |= {"ServerApp", "Training"}  # Flower's own, and a type
MODULES = [fl, fl.linear, fl.loopback, fl.plot, fl.puzzle, fl.reference, fl.stored, widgets]
if find_spec("flwr"):
    MODULES.append(fl.flower)


@pytest.mark.parametrize(
    "module",
    MODULES,
    ids=lambda module: module.__name__,
)
def test_every_public_name_has_an_entry(module):
    listed = [name for place, name in ENTRIES if place == module.__name__]
    assert len(set(listed)) == len(listed)
    public = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    if module is fl.stored:
        public -= {"load_result"}  # it stands in the first room
    assert set(listed) == public - CONSTANTS


def test_every_entry_is_in_its_rooms_summary():
    for _, room in ROOMS:
        summary = re.findall(r"^   (\w+)$", room, re.M)
        entries = re.findall(r"^\.\. auto\w+:: (\w+)$", room, re.M)
        assert summary == entries


SITE = ROOT / "_build" / "html" / "book"


def test_names_in_chapters_lead_to_their_entries_and_entries_to_chapters():
    if not (SITE / "api.html").exists():
        unavailable("the site is not built. Run `make site`.")
    page = BeautifulSoup((SITE / "api.html").read_text(encoding="utf-8"), "html.parser")
    anchors = {node["id"] for node in page.select("[id]")}
    assert page.select('a[href="03_puzzle.html"]')
    assert page.select('a[href="07_theorem.html#thm-representation"]')
    linked = set()
    for file in sorted(SITE.glob("[0-9][0-9]_*.html")):
        chapter = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        targets = {link["href"].removeprefix("api.html#") for link in chapter.select("a.api")}
        assert targets, file
        assert targets <= anchors
        linked |= targets
    assert {"fedlib.run_fedavg", "fedlib.linear.guarantee", "fedlib.plot.use_style"} <= linked
