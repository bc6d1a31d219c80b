"""Imports point one way, and pure rooms do no I/O."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernelbridge

ROOT = Path(kernelbridge.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "_images" not in path.parts)

GRAPH = {
    ".".join(("kernelbridge", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in MODULES
}

# A room may import itself and those below it in this list.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("server", "doctor"),
    ("workspace",),
    ("jupyter",),
    ("runtimes",),
    ("images",),
    ("image_base",),
    ("image_context", "image_progress"),
    ("protocol",),
    (
        "config",
        "report",
        "log",
        "settings_kinds",
        "settings_sources",
        "settings_environment",
        "quantities",
        "text",
        "trees",
        "turns",
    ),
    ("guest",),
    ("errors", "__init__"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
SIDEWAYS = {
    "config": {"settings_kinds", "settings_sources", "settings_environment", "quantities"},
    "settings_sources": {"settings_kinds", "quantities"},
    "settings_kinds": {"quantities"},
}

PURE = (
    "errors.py",
    "image_progress.py",
    "jupyter/bounded.py",
    "jupyter/cell_request.py",
    "jupyter/endings.py",
    "jupyter/events.py",
    "jupyter/execution.py",
    "jupyter/failures.py",
    "jupyter/identity.py",
    "jupyter/launch.py",
    "jupyter/output.py",
    "jupyter/recall.py",
    "jupyter/shown.py",
    "jupyter/wire.py",
    "protocol/",
    "quantities.py",
    "runtimes/accounts.py",
    "runtimes/docker_spec.py",
    "runtimes/facts.py",
    "runtimes/local_mounts.py",
    "runtimes/processors.py",
    "runtimes/seccomp.py",
    "server/access.py",
    "server/conditional.py",
    "server/frames.py",
    "settings_kinds.py",
    "text.py",
    "workspace/admission.py",
    "workspace/budget.py",
    "workspace/choice.py",
    "workspace/closing.py",
    "workspace/hints.py",
    "workspace/idling.py",
    "workspace/journal.py",
    "workspace/late.py",
    "workspace/lifecycle.py",
    "workspace/opening.py",
    "workspace/pyenv.py",
    "workspace/replay.py",
    "workspace/settings.py",
    "workspace/shell_hints.py",
    "workspace/shell_marks.py",
    "workspace/shell_script.py",
    "workspace/state.py",
    "workspace/status.py",
    "workspace/terminal_shell.py",
    "workspace/usage.py",
)
IMPURE = {"asyncio", "socket", "aiohttp", "docker", "zmq", "subprocess", "threading", "selectors"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def own_room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def upwards(path: Path) -> Iterator[str]:
    """The imports of a module that do not point downwards."""
    own = own_room(path)
    for module in imports(path):
        other = room(module)
        if module.split(".")[0] != "kernelbridge" or other not in RANK or other == own:
            continue
        if other not in SIDEWAYS.get(own, ()) and RANK[own] >= RANK[other]:
            yield f"{name(path)} imports {module}"


def io_of(path: Path) -> Iterator[str]:
    """What a module imports that does I/O, and what those that it imports do."""
    seen, ahead = set[Path](), [path]
    while ahead:
        module = ahead.pop()
        seen.add(module)
        for other in sorted({imported.split(".")[0] for imported in imports(module)} & IMPURE):
            yield f"{name(path)}: {name(module)} imports {other}"
        ahead += {GRAPH[imported] for imported in imports(module) if imported in GRAPH} - seen


def test_imports_point_downwards() -> None:
    assert [wrong for path in MODULES for wrong in upwards(path)] == []


def test_pure_rooms_do_no_io() -> None:
    assert [wrong for path in MODULES if name(path).startswith(PURE) for wrong in io_of(path)] == []


def test_every_pure_room_exists() -> None:
    assert [prefix for prefix in PURE if not any(name(path).startswith(prefix) for path in MODULES)] == []


def test_every_room_has_its_layer() -> None:
    assert [name(path) for path in MODULES if own_room(path) not in RANK] == []


def test_what_points_upwards_or_does_io_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "jupyter").mkdir()
    module = tmp_path / "jupyter/wrong.py"
    module.write_text("import socket\nfrom kernelbridge.protocol import base\nfrom kernelbridge.server import nobody\n")
    upward = ["jupyter/wrong.py imports kernelbridge.server", "jupyter/wrong.py imports kernelbridge.server.nobody"]
    assert list(upwards(module)) == upward
    monkeypatch.setitem(GRAPH, "kernelbridge.server", module)
    assert set(io_of(module)) == {"jupyter/wrong.py: jupyter/wrong.py imports socket"}


def test_there_is_no_import_cycle() -> None:
    edges = {module: {other for other in imports(path) if other in GRAPH} - {module} for module, path in GRAPH.items()}
    # A package's __init__ stands for its modules to those outside it.
    for module, others in edges.items():
        edges[module] = {other for other in others if not module.startswith(other + ".")}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())
