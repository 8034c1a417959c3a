"""Say whether the environment that runs this is whole and holds this checkout's library.

The Makefile asks before it does anything, and the tests before they start: a copied or moved clone
would otherwise test the library at the old place. Uses the standard library only.
"""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ROOT = Path(__file__).resolve().parent.parent


def requirements(root: Path = ROOT) -> dict[str, str]:
    """Names and versions that requirements.txt pins."""
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def library() -> Path | None:
    """The checkout whose library is installed here, or None if there is none."""
    for found in distributions(name="fedlib"):  # a build leaves another one in the checkout itself
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        address = urlsplit(origin.get("url", ""))
        if address.scheme == "file":
            return Path(url2pathname(address.path)).resolve()
    return None


def fault(root: Path = ROOT) -> str | None:
    """What is wrong with this environment, in a sentence."""
    place = library()
    if place != root:
        found = "not installed" if place is None else f"installed from {place}"
        return f"fedlib is {found}, not from {root}. Use `make clean`, then `make test`."
    for name in requirements(root):
        try:
            distribution(name)
        except PackageNotFoundError:
            return f"{name} is not installed. Use `make clean`, then `make test`."
    return None


if __name__ == "__main__":
    sys.exit(fault())
