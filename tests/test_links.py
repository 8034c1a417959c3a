"""Every link to the repository is derived from one address, and one command changes them all."""

import re
import shutil
import subprocess
from pathlib import Path

import notebooks
import pytest
from editions import write as write_editions
from repository import ROOT, binder, colab_link, config, editions, pages, split, website
from repository import notebooks as listed_notebooks
from retarget import files, retarget
from slides import write as write_slides

FORKS = {  # addresses of repository and website
    "GitHub": ("https://github.com/Some-One/a.fork", "https://some-one.github.io/a.fork/"),
    "GitLab": ("https://gitlab.com/A/school/Book", "https://a.gitlab.io/school/Book/"),
    "Codeberg": ("https://codeberg.org/me/book", "https://me.codeberg.page/book/"),
    "own host": ("https://git.example.edu:8443/~me/b", "https://www.example.edu/~me/b/"),
    "own site": ("https://github.com/me/book", "https://book.example.org/"),
}
forks = pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
SERVERS = "github.com", "colab.research.google.com", "mybinder.org", "github.io"


def addresses(root: Path) -> dict[str, set[str]]:
    """The addresses on hosts that serve repositories, by file."""
    settings = config(root)
    own = [settings["repository"]["url"], settings["html"]["baseurl"]]
    hosts = (*SERVERS, *(url.split("/")[2] for url in own))
    found = {}
    for path in files(root):
        urls = re.findall(r"https://[^\s\"'<>)\]}`]+", path.read_text(encoding="utf-8"))
        ours = {url for url in urls if url.split("/")[2].endswith(hosts)}
        found[path.relative_to(root).as_posix()] = ours
    return found


def is_derived(address: str, url: str, site: str) -> bool:
    own = (url, site, site.rstrip("/"), f"{editions(url, site)}colab/", binder(url))
    return address.startswith(own)


def elsewhere(root: Path) -> list[str]:
    """Links into repositories or their sites that are not this book's own.

    The text may point at other people's work, so only links that claim to open this book count.
    """
    url, site = config(root)["repository"]["url"], config(root)["html"]["baseurl"]
    own = {page.name for page in pages(root)} | {f"{page.stem}.html" for page in pages(root)}
    wrong = []
    for name, urls in addresses(root).items():
        for address in urls:
            claims = (
                name in {"_config.yml", "CITATION.cff", "pyproject.toml"}
                or address.split("/")[2].startswith(("colab.", "mybinder."))
                or address.split("/")[-1].split("#")[0] in own
            )
            if claims and not is_derived(address, url, site):
                wrong.append(f"{name}: {address}")
    return wrong


@pytest.fixture
def copy(tmp_path):
    """A copy of what `make retarget` rewrites."""
    for path in [*files(ROOT), ROOT / "_toc.yml", ROOT / "course" / "quizzes.yml"]:
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
    name = "/".join(split(config()["repository"]["url"])[1:])
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


@forks
def test_retarget_leaves_no_trace_of_the_old_address(copy, fork):
    url, site = fork
    _, old_owner, old_name = split(config(copy)["repository"]["url"])
    assert retarget(url, copy, site)
    traces = re.compile(rf"{re.escape(old_owner)}\b.{{0,12}}/{re.escape(old_name)}\b", re.I)
    for path in files(copy):
        assert not traces.search(path.read_text(encoding="utf-8")), path.name
    assert config(copy)["repository"]["url"] == url
    assert config(copy)["html"]["baseurl"] == site
    assert not elsewhere(copy)
    for path in listed_notebooks(copy):
        cells = notebooks.load(path)["cells"]
        assert colab_link(path, copy) in cells[0]["source"]
        assert f"git+{url}" in cells[1]["source"]
        text = path.read_text(encoding="utf-8")
        assert notebooks.normalise(notebooks.load(path), path, copy) == text
        where = "blob/notebooks/" if "github.com" in url else f"{site}notebooks/"
        assert f"{where}colab/{path.stem}.ipynb)" in cells[0]["source"]
    assert f"git+{url}\n" in (copy / "binder" / "requirements.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("fork", [FORKS["GitLab"], FORKS["own host"]], ids=["GitLab", "own host"])
def test_what_a_fork_writes_links_to_the_fork_alone(copy, fork, tmp_path_factory):
    """Notebooks, Binder's files and slides, all written by the retargeted copy."""
    url, site = fork
    old = config(copy)
    shutil.copytree(ROOT / "binder", copy / "binder", dirs_exist_ok=True)
    for name in ("references.bib", "course/paths.yml"):
        shutil.copyfile(ROOT / name, copy / name)
    retarget(url, copy, site)
    folder = tmp_path_factory.mktemp("written")
    write_editions(folder, root=copy)
    write_slides(folder / "slides", "../", root=copy)
    texts = [p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in {".ipynb", ".html"}]
    assert len(texts) > 40
    assert not [text for text in texts if old["repository"]["url"] in text]
    assert not [text for text in texts if old["html"]["baseurl"] in text]
    assert all(f"git+{url}" in text for text in texts if '"nbformat"' in text)
    assert f"git+{url}" in (folder / "binder" / "requirements.txt").read_text("utf-8")
    assert binder(url) in (folder / "README.md").read_text("utf-8")


@forks
def test_retarget_twice_changes_nothing_and_back_restores(copy, fork):
    retarget(fork[0], copy, fork[1])
    assert retarget(fork[0], copy, fork[1]) == []
    retarget(config()["repository"]["url"], copy)
    for path in files(copy):
        original = ROOT / path.relative_to(copy)
        assert path.read_text(encoding="utf-8") == original.read_text(encoding="utf-8")


def test_retarget_leaves_longer_names_alone(copy):
    url = FORKS["GitHub"][0]
    (copy / "EXTRA.md").write_text(f"{config()['repository']['url']}-2\n", encoding="utf-8")
    retarget(url, copy)
    assert "-2" in (copy / "EXTRA.md").read_text(encoding="utf-8")
    assert url not in (copy / "EXTRA.md").read_text(encoding="utf-8")


def test_websites_of_hosts_are_known_or_asked_for(copy):
    for name in ("GitHub", "GitLab", "Codeberg"):
        url, site = FORKS[name]
        assert website(url) == site
    with pytest.raises(ValueError, match=r"git\.example\.edu:8443 has no .* Use SITE="):
        retarget(FORKS["own host"][0], copy)
    with pytest.raises(ValueError, match=r"Invalid SITE=nowhere"):
        retarget(FORKS["own host"][0], copy, "nowhere")
    assert config(copy) == config()


@forks
def test_binder_and_colab_know_the_host(fork):
    url, site = fork
    kind = {"github.com": "gh", "gitlab.com": "gl"}.get(split(url)[0], "git")
    assert binder(url).startswith(f"https://mybinder.org/v2/{kind}/")
    assert binder(url).endswith("/notebooks")
    colab = editions(url, site).startswith("https://colab.research.google.com/github/")
    assert colab == (kind == "gh")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/nobody/nothing",
        "http://github.com/nobody/nothing",
        "https://github.com/nobody",
        "https://github.com/nobody/nothing/tree/main",
        "https://github.com/nobody/nothing.git",
        "https://example.org/nothing",
        "https://github.com/nobody/nothing?a=b",
        "git@github.com:nobody/nothing.git",
        "https://github.com/nobody/..",
    ],
)
def test_retarget_refuses_what_is_no_repository(copy, url):
    with pytest.raises(ValueError, match=r"^Invalid URL=.* Use the address"):
        retarget(url, copy)
    assert config(copy) == config()


def test_website_of_a_user_page():
    assert website("https://github.com/Me/me.github.io") == "https://me.github.io/"
    assert website("https://github.com/Me/Book") == "https://me.github.io/Book/"
