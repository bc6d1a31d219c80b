"""Imports point one way, and pure rooms do no I/O."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernelbridge

ROOT = Path(kernelbridge.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "_images" not in path.parts)

# A room may import itself and those below it in this list. What lies in no inner room of a package is in the package.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("client",),
    ("server", "doctor"),
    ("server.websocket",),
    ("server.websocket.handlers",),
    ("workspace.retention",),
    ("workspace.registry",),
    ("workspace.workspace",),
    ("workspace.lifecycle",),
    ("workspace.cells", "workspace.terminals"),
    ("workspace.files", "workspace.journal", "workspace.shell"),
    ("workspace.adoption",),
    ("workspace",),
    ("jupyter",),
    ("runtimes",),
    ("images", "disk"),
    ("audit",),
    ("identity",),
    ("settings", "protocol"),
    ("egress",),
    ("aio", "log", "metrics", "rates", "terminal_text", "trees", "watched_file"),
    ("guest",),
    ("errors", "__init__"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

PURE = (
    "cli/detaching.py",
    "cli/output_filter.py",
    "cli/pictures.py",
    "cli/typed_code.py",
    "client/core.py",
    "client/errors.py",
    "client/events.py",
    "client/results.py",
    "audit/entries.py",
    "egress/allowance.py",
    "egress/client_hello.py",
    "egress/environment.py",
    "egress/hosts.py",
    "egress/http_request.py",
    "egress/inner_request.py",
    "egress/policy.py",
    "egress/secrets.py",
    "egress/shares.py",
    "disk/limits.py",
    "errors.py",
    "identity/credentials.py",
    "identity/json_web_tokens.py",
    "identity/logins.py",
    "identity/principal.py",
    "identity/proxied.py",
    "identity/throttle.py",
    "identity/tokens.py",
    "images/progress.py",
    "jupyter/bounded.py",
    "jupyter/cell.py",
    "jupyter/end_causes.py",
    "jupyter/events.py",
    "jupyter/execution.py",
    "jupyter/failures.py",
    "jupyter/identity.py",
    "jupyter/launch.py",
    "jupyter/output.py",
    "jupyter/recall.py",
    "jupyter/wire.py",
    "jupyter/zmtp.py",
    "protocol/",
    "rates.py",
    "runtimes/accounts.py",
    "runtimes/docker/spec.py",
    "runtimes/facts.py",
    "runtimes/local/mounts.py",
    "runtimes/processors.py",
    "runtimes/seccomp.py",
    "server/access.py",
    "server/waiting_logins.py",
    "server/websocket/frames.py",
    "settings/kinds.py",
    "settings/quantities.py",
    "terminal_text.py",
    "workspace/cells/late_output.py",
    "workspace/command_outcome.py",
    "workspace/denials.py",
    "workspace/hints.py",
    "workspace/interrupt_progress.py",
    "workspace/job_queue.py",
    "workspace/journal/journal.py",
    "workspace/late_text.py",
    "workspace/lifecycle/admission.py",
    "workspace/lifecycle/status.py",
    "workspace/options.py",
    "workspace/python_env.py",
    "workspace/session_key.py",
    "workspace/adoption/session_state.py",
    "workspace/shell/screen_watch.py",
    "workspace/shell/marks.py",
    "workspace/shell/script.py",
    "workspace/shell/texts.py",
    "workspace/states.py",
    "workspace/usage_clock.py",
)
IMPURE = {"asyncio", "socket", "aiohttp", "docker", "zmq", "subprocess", "threading", "selectors"}


def dotted(path: Path) -> str:
    return ".".join(("kernelbridge", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


GRAPH = {dotted(path): path for path in MODULES}


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is for type checkers only: the names that the package imports when they are used first."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        only_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if only_types else self.generic_visit(node)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(WithoutTypes().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The innermost room that a module is in, by its name in `LAYERS`."""
    parts = module.split(".")[1:] or ["__init__"]
    inwards = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return next((found for found in reversed(inwards) if found in RANK), parts[0])


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def own_room(path: Path) -> str:
    return room(dotted(path))


def upwards(path: Path) -> Iterator[str]:
    """The imports of a module that do not point downwards."""
    own = own_room(path)
    for module in imports(path):
        other = room(module)
        if module.split(".")[0] != "kernelbridge" or other not in RANK or other == own:
            continue
        if RANK[own] >= RANK[other]:
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


def edges_of(graph: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports."""
    edges = {module: {other for other in imports(path) if other in graph} - {module} for module, path in graph.items()}
    # A package's __init__ stands for its modules to those outside it.
    return {
        module: {other for other in others if not module.startswith(other + ".")} for module, others in edges.items()
    }


def package(module: str, graph: dict[str, Path]) -> str:
    """The package that a module is in. One that lies beside packages stands for itself: it may be above or below."""
    parent = module.rpartition(".")[0]
    if graph[module].name == "__init__.py":
        return module
    return module if any(graph[other].name == "__init__.py" for other in graph if is_in(other, parent)) else parent


def is_in(module: str, parent: str) -> bool:
    return module.rpartition(".")[0] == parent


def package_edges(graph: dict[str, Path]) -> dict[str, set[str]]:
    """Which packages each package imports."""
    edges: dict[str, set[str]] = {}
    for module, others in edges_of(graph).items():
        own = package(module, graph)
        edges.setdefault(own, set()).update({package(other, graph) for other in others} - {own})
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """The first cycle that is found, if there is one."""
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node not in done:
            for other in sorted(edges.get(node, ())):
                if found := visit(other, (*trail, node)):
                    return found
            done.add(node)
        return []

    return next((found for node in edges if (found := visit(node, ()))), [])


def test_there_is_no_import_cycle_between_modules() -> None:
    assert cycle(edges_of(GRAPH)) == []


def test_there_is_no_import_cycle_between_packages() -> None:
    assert cycle(package_edges(GRAPH)) == []


def test_a_cycle_between_packages_is_found_where_the_modules_have_none(tmp_path: Path) -> None:
    texts = {
        "kernelbridge.w": "",
        "kernelbridge.w.a": "",
        "kernelbridge.w.a.one": "from kernelbridge.w.b.two import it",
        "kernelbridge.w.a.three": "it = 3",
        "kernelbridge.w.b": "",
        "kernelbridge.w.b.two": "from kernelbridge.w.a.three import it",
        "kernelbridge.w.above": "from kernelbridge.w.a.one import it",
        "kernelbridge.w.below": "it = 4",
    }
    graph = {}
    for module, text in texts.items():
        path = tmp_path / module.replace(".", "/")
        is_package = any(other.startswith(module + ".") for other in texts)
        graph[module] = path / "__init__.py" if is_package else path.with_suffix(".py")
        graph[module].parent.mkdir(parents=True, exist_ok=True)
        graph[module].write_text(text)
    assert cycle(edges_of(graph)) == []
    assert cycle(package_edges(graph)) == ["kernelbridge.w.a", "kernelbridge.w.b", "kernelbridge.w.a"]
    graph["kernelbridge.w.b.two"].write_text("from kernelbridge.w.below import it")
    assert cycle(package_edges(graph)) == []
