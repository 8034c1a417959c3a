"""Point every link of the book at another repository: `make retarget URL=… [SITE=…]`.

Rewrites `_config.yml` and, in the files below, each address derived from it: the repository itself,
its notebooks in Colab and Binder, and its website. Any git host will do; where it serves websites
is known for some, and else to be given. Colab opens notebooks from GitHub alone: for another host,
its links become downloads.
"""

import os
import re
import sys
from pathlib import Path

import notebooks
from repository import ROOT, binder, config, editions, split, website
from repository import notebooks as listed_notebooks

FILES = [
    *("*.md", "*.cff", "*.toml", "_config.yml", "book/**/*.md", "book/**/*.ipynb"),
    *("fedlib/**/*.py", ".github/**/*.yml", ".github/**/*.md", "course/**/*.md", "course/**/*.py"),
    "binder/requirements.txt",
]


def files(root: Path) -> list[Path]:
    return sorted({path for pattern in FILES for path in root.glob(pattern)})


def derived(url: str, site: str) -> list[str]:
    """The beginnings of all addresses of a repository."""
    return [f"{editions(url, site)}colab", binder(url), site.rstrip("/"), url]


def rewritten(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """Replace in `text` every address derived from the repository and site `old`."""
    pairs = dict(zip(derived(*old), derived(*new), strict=True))
    alternatives = "|".join(re.escape(address) for address in sorted(pairs, key=len)[::-1])
    # Not inside a longer name: .../book is not .../book-2.
    return re.sub(f"(?:{alternatives})(?![\\w-])", lambda found: pairs[found.group()], text)


def retarget(url: str, root: Path = ROOT, site: str = "") -> list[Path]:
    """Rewrite the files; return those that changed."""
    settings = config(root)
    old = settings["repository"]["url"], settings["html"]["baseurl"]
    split(url)
    if site and not re.fullmatch(r"https?://[^\s\"'<>()]+", site):
        raise ValueError(f"Invalid SITE={site}: no address of a website. Use https://…")
    new = url, f"{site.rstrip('/')}/" if site else website(url)
    texts = {path: path.read_text(encoding="utf-8") for path in files(root)}
    for path, text in texts.items():
        if (changed := rewritten(text, old, new)) != text:
            path.write_text(changed, encoding="utf-8")
    for path in listed_notebooks(root):  # whether their links open or download
        path.write_text(notebooks.normalise(notebooks.load(path), path, root), encoding="utf-8")
    return [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit("Missing URL. Use: make retarget URL=https://host/owner/name")
    try:
        for path in retarget(sys.argv[1].rstrip("/"), site=os.environ.get("SITE", "")):
            print(f"rewrote {path.relative_to(ROOT)}")
    except ValueError as error:
        sys.exit(str(error))
