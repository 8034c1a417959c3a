"""Every link to the repository is derived from one address, and one command changes them all."""

import re
import shutil
import subprocess
from pathlib import Path

import notebooks
import pytest
from repository import ROOT, colab_link, config, owner_and_name, pages, website
from repository import notebooks as listed_notebooks
from retarget import files, retarget

FORK = "https://github.com/Some-One/a.fork"
HOSTS = "github.com", "colab.research.google.com", "mybinder.org", "github.io"


def addresses(root: Path) -> dict[str, set[str]]:
    """The addresses on hosts that serve repositories, by file."""
    found = {}
    for path in files(root):
        urls = re.findall(r"https://[^\s\"'<>)\]}`]+", path.read_text(encoding="utf-8"))
        ours = {url for url in urls if url.split("/")[2].endswith(HOSTS)}
        found[path.relative_to(root).as_posix()] = ours
    return found


def derived(url: str) -> tuple[str, ...]:
    name = "/".join(owner_and_name(url))
    return (
        url,
        f"https://colab.research.google.com/github/{name}/blob/main/",
        f"https://mybinder.org/v2/gh/{name}/main",
        website(url),
        # Configuration of the launch buttons: hosts alone.
        "https://colab.research.google.com",
        "https://mybinder.org",
    )


def is_derived(address: str, url: str) -> bool:
    *prefixes, colab, binder = derived(url)
    return address in (colab, binder) or address.startswith(tuple(prefixes))


def elsewhere(root: Path) -> list[str]:
    """Links into repositories or their sites that are not this book's own.

    The text may point at other people's work, so only links that claim to open this book count.
    """
    url = config(root)["repository"]["url"]
    own = {page.name for page in pages(root)} | {f"{page.stem}.html" for page in pages(root)}
    wrong = []
    for name, urls in addresses(root).items():
        for address in urls:
            claims = (
                name in {"_config.yml", "CITATION.cff", "pyproject.toml"}
                or address.split("/")[2].startswith(("colab.", "mybinder."))
                or address.split("/")[-1].split("#")[0] in own
            )
            if claims and not is_derived(address, url):
                wrong.append(f"{name}: {address}")
    return wrong


@pytest.fixture
def copy(tmp_path):
    """A copy of what `make retarget` rewrites."""
    for path in [*files(ROOT), ROOT / "_toc.yml"]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def test_every_link_agrees_with_the_configuration():
    assert not elsewhere(ROOT)
    assert config()["html"]["baseurl"] == website(config()["repository"]["url"])
    for path in ("README.md", "CITATION.cff", "pyproject.toml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert config()["repository"]["url"] in text, f"{path} does not name the repository"


def test_no_other_file_names_the_repository():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout of one's own: which files are the book's is not known")
    others = {ROOT / name for name in tracked.stdout.split("\0") if name} - set(files(ROOT))
    name = "/".join(owner_and_name(config()["repository"]["url"]))
    for path in others:
        if path.is_file():
            assert name not in path.read_text(encoding="utf-8", errors="replace"), path


def test_a_link_that_disagrees_is_found(copy):
    for name, wrong in {
        "CITATION.cff": "https://github.com/else/where",
        "README.md": "https://colab.research.google.com/github/else/where/blob/main/book/intro.ipynb",
    }.items():
        path = copy / name
        path.write_text(path.read_text(encoding="utf-8") + f"\n{wrong}\n", encoding="utf-8")
        assert elsewhere(copy) == [f"{name}: {wrong}"]
        shutil.copyfile(ROOT / name, path)


def test_retarget_leaves_no_trace_of_the_old_address(copy):
    old_owner, old_name = owner_and_name(config(copy)["repository"]["url"])
    assert retarget(FORK, copy)
    traces = re.compile(rf"{re.escape(old_owner)}\b.{{0,12}}/{re.escape(old_name)}\b", re.I)
    for path in files(copy):
        assert not traces.search(path.read_text(encoding="utf-8")), path.name
    assert config(copy)["repository"]["url"] == FORK
    assert config(copy)["html"]["baseurl"] == "https://some-one.github.io/a.fork/"
    assert not elsewhere(copy)
    for path in listed_notebooks(copy):
        cells = notebooks.load(path)["cells"]
        assert colab_link(path, copy) in cells[0]["source"]
        assert f"git+{FORK}" in cells[1]["source"]
        text = path.read_text(encoding="utf-8")
        assert notebooks.normalise(notebooks.load(path), path, copy) == text


def test_retarget_twice_changes_nothing_and_back_restores(copy):
    retarget(FORK, copy)
    assert retarget(FORK, copy) == []
    retarget(config()["repository"]["url"], copy)
    for path in files(copy):
        original = ROOT / path.relative_to(copy)
        assert path.read_text(encoding="utf-8") == original.read_text(encoding="utf-8")


def test_retarget_leaves_longer_names_alone(copy):
    (copy / "EXTRA.md").write_text(f"{config()['repository']['url']}-2\n", encoding="utf-8")
    retarget(FORK, copy)
    assert "-2" in (copy / "EXTRA.md").read_text(encoding="utf-8")
    assert FORK not in (copy / "EXTRA.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/nobody/nothing",
        "http://github.com/nobody/nothing",
        "https://github.com/nobody",
        "https://github.com/nobody/nothing/tree/main",
        "https://github.com/nobody/nothing.git",
        "https://example.org/nobody/nothing",
        "https://github.com/nobody/nothing?a=b",
    ],
)
def test_retarget_refuses_what_is_no_repository(copy, url):
    with pytest.raises(ValueError, match=r"^Invalid URL=.* Use the address"):
        retarget(url, copy)
    assert config(copy) == config()


def test_website_of_a_user_page():
    assert website("https://github.com/Me/me.github.io") == "https://me.github.io/"
    assert website("https://github.com/Me/Book") == "https://me.github.io/Book/"
