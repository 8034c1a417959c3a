"""Write what pins every package that `make` installs (`make lock`), after a change of requirements.

constraints.txt has the versions in this environment: `make clean` before it, so that nothing is
left of older requirements. Left out are the library itself, the installers, and the label of a
local build of torch, which other machines cannot have. requirements-lock.txt has the same packages,
and those of other systems and Pythons, each with the hashes of its files: `make HASHES=1`.
"""

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from environment import ROOT

LEFT_OUT = {"fedlib", "pip", "setuptools", "wheel"}
HEADER = """\
# Every package that `make` installs, with its version: what requirements.txt brings along, too.
# Written by `make lock`. Packages that only another system or Python needs are not in it.
"""
HASHED = """\
# Every package with the hashes of its files, on every system: what `make HASHES=1` installs.
# Written by `make lock`.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    found = {normal(d.name): d.version.partition("+")[0] for d in distributions()}
    return {name: found[name] for name in sorted(set(found) - LEFT_OUT)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def hashes() -> dict[tuple[str, str], list[str]]:
    """Return the hashes in requirements-lock.txt, by package and version."""
    text = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.M)):
        name, version = re.match(r"([a-z0-9-]+)==([^ ;\\]+)", entry).groups()
        found[name, version] = re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry)
    return found


def hashed() -> str:
    """Resolve requirements.txt for every system, with the versions of constraints.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("-e .\n", "")
    command = [
        Path(sys.executable).with_name("uv"),
        "pip",
        "compile",
        "-",
        "--constraint",
        "constraints.txt",
        "--universal",
    ]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
    done = subprocess.run(
        command, cwd=ROOT, input=text, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    lines = [f"{name}=={version}\n" for name, version in installed().items()]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    (ROOT / "requirements-lock.txt").write_text(HASHED + hashed(), encoding="utf-8")
