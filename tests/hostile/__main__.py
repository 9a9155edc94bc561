"""Draw hostile commands and run them for a while; print each that ends badly.

    python -m tests.hostile [--seed 7] [--seconds 600] [--only prepare:12] [--keep]

`--only` repeats one case, in a folder that it names and keeps.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.hostile.hunt import Hunt


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(os.environ.get("HOSTILE_SEED", "0")))
    seconds = float(os.environ.get("HOSTILE_SECONDS", "600"))
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--only", help="COMMAND:NUMBER, as a failure is printed, or COMMAND")
    parser.add_argument("--servers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        hunt = Hunt(given.seed, Path(work), given.servers)
        if given.only and ":" in given.only:
            command, number = given.only.split(":")
            return hunt.repeat(command, int(number))
        return hunt.run(given.seconds, [given.only] if given.only else ())


if __name__ == "__main__":
    sys.exit(main())
