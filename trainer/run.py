"""Entry point: python trainer/run.py --teacher r2plus1d"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts this script's folder first on sys.path; the packages lie one above it.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
