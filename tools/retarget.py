"""Point every link of the book at another repository: `make retarget URL=…`.

Rewrites `_config.yml` and, in the files below, each address derived from it: the repository itself,
its Colab and Binder addresses and its website.
"""

import re
import sys
from pathlib import Path

from repository import ROOT, config, owner_and_name, website

FILES = [
    *("*.md", "*.cff", "*.toml", "_config.yml", "book/**/*.md", "book/**/*.ipynb"),
    *("fedlib/**/*.py", ".github/**/*.yml", ".github/**/*.md"),
]
# What may stand before `owner/name` in an address of the repository.
PREFIXES = [
    "https://github.com/",
    "https://colab.research.google.com/github/",
    "https://mybinder.org/v2/gh/",
    "https://mybinder.org/badge/",
]


def files(root: Path) -> list[Path]:
    return sorted({path for pattern in FILES for path in root.glob(pattern)})


def rewritten(text: str, old: str, new: str) -> str:
    """Replace in `text` every address derived from the repository `old`."""
    pairs = {website(old): website(new), website(old).rstrip("/"): website(new).rstrip("/")}
    old_name, new_name = ("/".join(owner_and_name(url)) for url in (old, new))
    pairs |= {prefix + old_name: prefix + new_name for prefix in PREFIXES}
    alternatives = "|".join(re.escape(address) for address in pairs)
    # Not inside a longer name: .../book is not .../book-2.
    return re.sub(f"(?:{alternatives})(?![\\w-])", lambda found: pairs[found.group()], text)


def retarget(url: str, root: Path = ROOT) -> list[Path]:
    """Rewrite the files; return those that changed."""
    old = config(root)["repository"]["url"]
    owner_and_name(url)
    changed = []
    for path in files(root):
        text = path.read_text(encoding="utf-8")
        new = rewritten(text, old, url)
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit("Missing URL. Use: make retarget URL=https://github.com/owner/name")
    try:
        for path in retarget(sys.argv[1].rstrip("/")):
            print(f"rewrote {path.relative_to(ROOT)}")
    except ValueError as error:
        sys.exit(str(error))
