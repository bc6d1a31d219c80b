"""Run one target under atheris, in a process of its own: `python -m tests.fuzz.under_atheris TARGET [libFuzzer's …]`.

libFuzzer ends the process: with 0 when its time is over, with another code after a finding.
"""

import importlib
import sys


def main() -> None:
    """Run the command."""
    atheris = importlib.import_module("atheris")  # it has no types, and most tests do without it
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["kernelbridge"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup([sys.argv[0], *arguments], target.fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
