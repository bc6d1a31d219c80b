"""The seeds of the fuzzing: what the targets promise holds for them, without a fuzzer."""

import importlib
import tempfile
from pathlib import Path

import pytest

from tests.fuzz import TARGETS, egress


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_target(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = importlib.import_module(f"tests.fuzz.{name}")
    for seed in (*target.SEEDS, b""):
        target.fuzz(seed)


def test_openssl_reads_a_hello_too() -> None:
    """Otherwise the comparison with what OpenSSL reads would compare nothing."""
    assert egress.names_that_a_server_sees(egress.SEEDS[-1]) == ["A.Example"]
