"""Fuzzing of everything that reads what a stranger wrote. `python -m tests.fuzz --help` says how.

Each target is a module with a function `fuzz(data)`, which fails if the product breaks one of its promises on these
bytes; with `SEEDS`, inputs to begin with; and with `TOKENS`, from which others are made.
`tests/unit/test_fuzz_targets.py` runs the seeds without a fuzzer.
"""

TARGETS = ("messages", "channels", "wire", "screen", "egress", "paths")
