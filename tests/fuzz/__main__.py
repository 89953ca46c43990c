"""`python -m tests.fuzz GROUP [SECONDS]`: fuzz one group of parsers; without arguments all, one after the other.

What was interesting is kept in build/fuzz/GROUP and is where the next run begins. An input that fails is written to
build/fuzz/GROUP-crash-…; `python -m tests.fuzz GROUP FILE` runs it again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nvmeofd"]):
    from tests.fuzz import checks

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
SECONDS = 60


def fuzz(group: str, seconds: int) -> None:
    corpus = BUILD / group
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(checks.seeds(group)):
        (corpus / f"seed-{number}").write_bytes(seed)
    files = BUILD / f"{group}-files"
    files.mkdir(exist_ok=True)
    logging.disable(logging.CRITICAL)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-", "-max_len=2048", "-timeout=5"]
    # A leak shows as memory that is out.
    options += ["-rss_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: checks.run(group, data, files))
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            for group in checks.GROUPS:
                print(f"== {group}", flush=True)
                # A process for each: libFuzzer ends its own.
                subprocess.run([sys.executable, "-m", "tests.fuzz", group], check=True)
        case [group]:
            fuzz(group, SECONDS)
        case [group, seconds] if seconds.isdecimal():
            fuzz(group, int(seconds))
        case [group, file]:
            with tempfile.TemporaryDirectory() as files:
                checks.run(group, Path(file).read_bytes(), Path(files))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
