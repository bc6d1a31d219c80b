"""The built files in the repository are those that the sources make, and the sources pass their own checks."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "clients" / "page"
STATIC = ROOT / "kernelbridge" / "page" / "static"


def npx(*words: str) -> str:
    """Run a program of the page's packages, which `npm ci` has installed; return what it prints."""
    command = ["npx", "--no-install", *words]
    environ = os.environ | {"NO_COLOR": "1", "CI": "1"}
    done = subprocess.run(command, cwd=PAGE, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_built_files_are_those_of_the_sources(tmp_path: Path) -> None:
    npx("vite", "build", "--outDir", str(tmp_path / "built"), "--emptyOutDir")
    made, kept = files(tmp_path / "built"), files(STATIC)
    changed = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert changed == [], "run `npm ci && npm run build` in clients/page, and commit kernelbridge/page/static"


@pytest.mark.parametrize("words", [("tsc", "--noEmit"), ("prettier", "--check", "--log-level", "warn", ".")])
def test_types_and_format(words: tuple[str, ...]) -> None:
    npx(*words)


def test_the_parts_without_a_browser() -> None:
    assert "passed" in npx("vitest", "run")
