"""The repository's one address (`_config.yml`) and everything that is derived from it."""

import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import yaml

ROOT = Path(__file__).parent.parent
PLACEHOLDER = "/".join(("OWNER", "REPOSITORY"))  # before the first `make retarget`
EDITIONS = "notebooks"  # the branch, and the folder of the site, that hold the notebook editions
# Where a host serves the website of a repository, if it does so at one known address.
PAGES = {
    "github.com": "https://{owner}.github.io/",
    "gitlab.com": "https://{owner}.gitlab.io/",
    "codeberg.org": "https://{owner}.codeberg.page/",
}


def config(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def split(url: str) -> tuple[str, str, str]:
    """Split `https://host/owner/name` into its three parts; an owner may hold slashes."""
    segment = r"[\w~][\w.~-]*"
    match = re.fullmatch(rf"https://([\w.:-]+)/({segment}(?:/{segment})*)/({segment})", url)
    owner = match[2] if match else ""
    if match is None or match[3].endswith(".git") or (match[1] == "github.com" and "/" in owner):
        raise ValueError(
            f"Invalid URL={url}: not of the form https://host/owner/name. "
            "Use the address of your fork's front page."
        )
    return match[1], owner, match[3]


def website(url: str) -> str:
    """The address at which the host serves this repository's website, with a closing slash."""
    host, owner, name = split(url)
    if host not in PAGES:
        raise ValueError(
            f"Invalid URL={url}: {host} has no known address for websites. "
            "Use SITE=https://… to say where yours is."
        )
    group, *below = owner.lower().split("/")
    front = PAGES[host].format(owner=group)
    if not below and front == f"https://{name.lower()}/":
        return front
    return f"{front}{'/'.join([*below, name])}/"


def editions(url: str, site: str) -> str:
    """Where the plain notebooks open: in Colab, which knows GitHub alone, or on the site.

    Returns:
        The beginning of their addresses; `colab/01_fedavg.ipynb` may follow.
    """
    host, owner, name = split(url)
    if host == "github.com":
        return f"https://colab.research.google.com/github/{owner}/{name}/blob/{EDITIONS}/"
    return f"{site}{EDITIONS}/"


def binder(url: str) -> str:
    """Binder's address of the branch of the notebook editions."""
    host, owner, name = split(url)
    if host == "github.com":
        place = f"gh/{owner}/{name}"
    elif host == "gitlab.com":
        place = f"gl/{quote(f'{owner}/{name}', safe='')}"
    else:
        place = f"git/{quote(url, safe='')}"
    return f"https://mybinder.org/v2/{place}/{EDITIONS}"


def pin(root: Path = ROOT) -> str:
    """The tag of the commit at hand, else its hash; empty where git knows none."""
    for command in (["describe", "--tags", "--exact-match"], ["rev-parse", "HEAD"]):
        try:
            done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True)
        except OSError:
            return ""
        if done.returncode == 0:
            return done.stdout.strip()
    return ""


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of `_toc.yml`, in reading order."""
    return [path for path in pages(root) if path.suffix == ".ipynb"]


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of `_toc.yml`, in reading order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    names = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    found = []
    for name in names:
        candidates = [root / f"{name}{suffix}" for suffix in (".ipynb", ".md")]
        existing = [path for path in candidates if path.exists()]
        if not existing:
            raise FileNotFoundError(f"Missing page {name}: _toc.yml names it. Add it or remove it.")
        found.append(existing[0])
    return found


def colab_link(path: Path, root: Path = ROOT, edition: str = "colab") -> str:
    """The Markdown line below a notebook's title: to its plain edition."""
    settings = config(root)
    address = editions(settings["repository"]["url"], settings["html"]["baseurl"])
    text = "Open in Colab" if "//colab." in address else "Download this notebook"
    return f"[{text}]({address}{edition}/{path.stem}.ipynb)"


def setup_cell(requirement: str) -> str:
    """The first code cell of every notebook."""
    return (
        "# Colab set-up: does nothing where fedlib is already installed.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("fedlib") is None:\n'
        f'    %pip install -q "{requirement}"'
    )


def colab_cell(root: Path = ROOT) -> str:
    """The set-up cell of the notebooks in book/, which belong to the branch they are on."""
    return setup_cell(f"git+{config(root)['repository']['url']}")
