"""Write constraints.txt: the version of every package in this environment (`make lock`).

`make clean` before it, so that nothing is left of older requirements. Left out are the library
itself, the installers, and the label of a local build of torch, which other machines cannot have.
"""

import re
from importlib.metadata import distributions

from environment import ROOT

LEFT_OUT = {"fedlib", "pip", "setuptools", "wheel"}
HEADER = """\
# Every package that `make` installs, with its version: what requirements.txt brings along, too.
# Written by `make lock`. Packages that only another system or Python needs are not in it.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    found = {normal(d.name): d.version.partition("+")[0] for d in distributions()}
    return {name: found[name] for name in sorted(set(found) - LEFT_OUT)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    lines = [f"{name}=={version}\n" for name, version in installed().items()]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
