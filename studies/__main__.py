"""``python -m studies NAME ...`` runs a study; ``python -m studies NAME --help`` says how."""

import importlib
import sys
from pathlib import Path

STUDIES = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem[0] != "_")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:
        sys.exit(f"usage: python -m studies NAME [--help]\nNAME is one of: {', '.join(STUDIES)}")
    importlib.import_module(f"studies.{sys.argv[1]}").main(sys.argv[2:])
