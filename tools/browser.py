"""Find a browser of Chromium's family; with `--install`, get one where that needs no question.

That is on Debian and its kin, as root, from the distribution's own packages.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = [
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "microsoft-edge-stable", "msedge", "brave-browser"),
]
MAC = "/Applications/{0}.app/Contents/MacOS/{0}"
FILES = [MAC.format(name) for name in ("Chromium", "Google Chrome", "Microsoft Edge")]
MISSING = "no Chromium, Chrome or Edge found: install one, or name it by CHROMIUM=/path/to/it"


def chromium() -> str | None:
    """The browser to drive: $CHROMIUM, else the first of the usual names and places that starts."""
    if os.environ.get("CHROMIUM"):
        return os.environ["CHROMIUM"]
    found = [shutil.which(name) for name in NAMES] + FILES
    return next((path for path in found if path and Path(path).exists() and starts(path)), None)


def starts(path: str) -> bool:
    """Whether it is a browser: Ubuntu's package is a note that there is a snap."""
    try:
        return not subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> None:
    if chromium() or not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("apt-get"):
        return
    print("==> Installing Chromium for the tests of the website", flush=True)
    quiet = dict(env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True)
    if subprocess.run(["apt-get", "update", "-qq"], **quiet).returncode == 0:
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(command, **quiet)


if __name__ == "__main__":
    if "--install" in sys.argv:
        install()  # without one, the tests that need it are skipped, and say so
    else:
        print(chromium() or sys.exit(MISSING))
