"""The repository's one address (`_config.yml`) and everything that is derived from it."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PLACEHOLDER = "/".join(("OWNER", "REPOSITORY"))  # before the first `make retarget`


def config(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def owner_and_name(url: str) -> tuple[str, str]:
    """Split `https://github.com/owner/name`; Colab and Pages know no other form."""
    match = re.fullmatch(r"https://github\.com/([A-Za-z0-9][A-Za-z0-9-]*)/([\w.-]+)", url)
    if match is None or match[2] in {".", ".."} or match[2].endswith(".git"):
        raise ValueError(
            f"Invalid URL={url}: not of the form https://github.com/owner/name. "
            "Use the address of your fork's front page."
        )
    return match[1], match[2]


def website(url: str) -> str:
    """The address at which GitHub Pages serves this repository, with a closing slash."""
    owner, name = owner_and_name(url)
    host = f"https://{owner.lower()}.github.io/"
    return host if f"https://{name.lower()}/" == host else f"{host}{name}/"


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


def colab_link(path: Path, root: Path = ROOT) -> str:
    """The Markdown line below a notebook's title."""
    repository = config(root)["repository"]
    owner, name = owner_and_name(repository["url"])
    address = f"https://colab.research.google.com/github/{owner}/{name}/blob"
    return f"[Open in Colab]({address}/{repository['branch']}/{path.relative_to(root).as_posix()})"


def colab_cell(root: Path = ROOT) -> str:
    """The first code cell of every notebook."""
    return (
        "# Colab set-up: does nothing where fedlib is already installed.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("fedlib") is None:\n'
        f'    %pip install -q "git+{config(root)["repository"]["url"]}"'
    )
