"""Fuzz the parsers with atheris, guided by which lines of kernelbridge an input reaches.

    python -m tests.fuzz [TARGET …] [--seconds N]
    python -m tests.fuzz TARGET --input FILE

Without a target all run, one after the other, each for N seconds. The exit code is 1 if one of them found something;
then the input is kept, and `--input` runs it again, without atheris. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import TARGETS

LONGEST = 4096
"""Bytes of an input."""
INPUT_SECONDS = 30
"""How long one input may take."""
MEMORY_MB = 2048
MEMORY = Path("/dev/shm")
"""Where the target makes its files: twenty times faster than on a disk, because everything is synced."""
START_SECONDS = 120
"""How long a target may take beyond its time: to import, to run its seeds, to stop."""


def run(name: str, seconds: int) -> bool:
    """Run a target for some seconds. Return whether it found nothing."""
    home = Path(tempfile.mkdtemp(prefix=f"kernelbridge-fuzz-{name}-"))
    corpus, findings, tokens, log = (home / each for each in ("corpus", "findings", "tokens", "log"))
    for directory in (corpus, findings):
        directory.mkdir()
    target = importlib.import_module(f"tests.fuzz.{name}")
    for number, seed in enumerate(target.SEEDS):
        (corpus / str(number)).write_bytes(seed)
    tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.TOKENS))
    with log.open("wb") as output, tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        command = [
            *(sys.executable, "-m", "tests.fuzz.under_atheris", name, str(corpus), f"-max_total_time={seconds}"),
            *(f"-max_len={LONGEST}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}"),
            *(f"-dict={tokens}", f"-artifact_prefix={findings}/", "-print_final_stats=1", "-verbosity=0"),
        ]
        limit = seconds + START_SECONDS
        env = {**os.environ, "TMPDIR": scratch}
        status: int | str
        try:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=env, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"not ended after {limit} s; run the inputs in {corpus} one by one, with --input"
    said = log.read_text(errors="replace")
    executions = re.search(r"number_of_executed_units: ([0-9]+)", said)
    if status == 0 and executions is not None:
        print(f"{name}: {executions[1]} executions in {seconds} s, no finding", flush=True)
        shutil.rmtree(home)
        return True
    print(f"{said}\n{name}: FAILED ({status})", flush=True)
    for found in findings.iterdir():
        print(f"run this input again: python -m tests.fuzz {name} --input {found}", flush=True)
    return False


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def main() -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="how long to run each target")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one input")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; the targets are {', '.join(TARGETS)}")
    if arguments.input is not None:
        if len(arguments.targets) != 1:
            parser.error("--input needs the one target that it is for")
        importlib.import_module(f"tests.fuzz.{arguments.targets[0]}").fuzz(arguments.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error(
            "atheris is not installed: pip install -e '.[fuzz]'. It has packages for CPython 3.11 to 3.14 on x86-64"
        )
    failed = [name for name in arguments.targets or TARGETS if not run(name, arguments.seconds)]
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
