"""What a workspace image offers: inspected and tried once per digest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog
from docker.errors import APIError

from kernelbridge.errors import ImageError, RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.contract import WORKSPACE_PATH, ExitStatus, Limits
from kernelbridge.runtimes.docker.engine import Engine, explain
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.spec import DEFAULT_USER, ImageFacts, Launch, image_facts
from kernelbridge.runtimes.docker.tasks import Background
from kernelbridge.runtimes.facts import PROBE, Facts, parse_probe

log = structlog.get_logger(__name__)

PROBE_SECONDS = 30.0
"""How long the probe may take, with a cold disk."""

_FIND_PYTHON = r"""
for python in python3 python /opt/conda/bin/python; do
    if command -v "$python" >/dev/null; then exec "$python" -c "$1"; fi
done
# A python that only a kernelspec names.
for spec in /usr/local/share/jupyter/kernels/*/kernel.json /usr/share/jupyter/kernels/*/kernel.json; do
    [ -r "$spec" ] || continue
    set -f
    while IFS= read -r line || [ -n "$line" ]; do
        IFS='"'
        for word in $line; do
            case $word in /*python*) if [ -x "$word" ]; then exec "$word" -c "$1"; fi ;; esac
        done
    done <"$spec"
    set +f
done
exit 127
"""
"""Finds a python and runs its argument, a program, with it."""
_NO_PYTHON = 127

Start = Callable[[Launch], Coroutine[Any, Any, DockerSandbox]]


def own_user(uid: int, gid: int) -> str | None:
    """Return the user of containers: the server's, unless it is root, so that each can open the other's files."""
    return None if uid == 0 else f"{uid}:{gid}"


class WorkspaceImage:
    """An image that sandboxes are made from. Its tag may move to another digest while the server runs."""

    def __init__(
        self,
        name: str,
        *,
        engine: Engine,
        background: Background,
        launch: Callable[..., Launch],
        start: Start,
        any_uid: int | None,
    ) -> None:
        """Know nothing about it yet.

        `launch` makes a `Launch` with what all of a runtime have in common; `start` starts one. `any_uid` is a user id
        to try the image with, None if sandboxes have no user ids of their own.
        """
        self._any_uid = any_uid
        self.name = name
        self._engine = engine
        self._background = background
        self._launch = launch
        self._start = start
        self._user = own_user(os.geteuid(), os.getegid())
        self._facts: dict[str, Facts] = {}
        self._probing = asyncio.Lock()
        self._unanswered: RuntimeUnavailable | None = None
        """The error of the latest probe that the engine did not answer."""

    async def current(self) -> tuple[ImageFacts, Facts]:
        """Return what the name stands for now; raises `ImageError` if it cannot be used."""
        try:
            inspected = await self._engine.call(
                lambda api: api.inspect_image(self.name),  # type: ignore[no-untyped-call]  # the stubs lack it
                doing="looking up the workspace image",
            )
        except APIError as exc:
            if exc.status_code == 404:  # noqa: PLR2004 - HTTP: not found
                raise self.absent() from exc
            raise ImageError(f"Workspace image {self.name!r} cannot be looked up", explain(exc)) from exc
        image = image_facts(inspected)
        return image, self._facts.get(image.id) or await self._tried(image)

    def absent(self) -> ImageError:
        """Return the error for an image that the engine does not have."""
        return ImageError(
            f"There is no workspace image {self.name!r}",
            "run `kernelbridge images build` for the default image, or `docker pull` for one of your own",
        )

    async def _tried(self, image: ImageFacts) -> Facts:
        unanswered = self._unanswered
        async with self._probing:
            if (problem := self._unanswered) is not None and problem is not unanswered:
                # Otherwise each caller would wait as long as the one before, for the same error.
                raise RuntimeUnavailable(problem.message, problem.reason)
            try:
                facts = self._facts.get(image.id) or await self._probe(image)
            except RuntimeUnavailable as exc:
                self._unanswered = RuntimeUnavailable(exc.message, exc.reason)
                raise
            self._facts[image.id] = facts
            return facts

    async def _probe(self, image: ImageFacts) -> Facts:
        facts = await self._ask(image, self._user or image.run_as)
        if facts.uid == 0:  # the image gives root another name
            facts = await self._ask(image, DEFAULT_USER)
        return facts

    async def _ask(self, image: ImageFacts, user: str) -> Facts:
        """Run the probe as `user`; raises `ImageError`."""
        unusable = f"Workspace image {self.name!r} cannot be used"
        said, errors, status = await self._try(image, user, unusable)
        if status.code == _NO_PYTHON:
            raise ImageError(
                unusable,
                "it has no python3; install Python 3.8 or later in the image, with ipykernel: workspaces use the Python"
                " of their image",
            )
        if status.code != 0:
            tail = " ".join((said + errors).decode("utf-8", "replace").split())[-500:]
            raise ImageError(unusable, f"its python failed with {status}: {tail}")
        facts = _facts(said, image)
        if self._any_uid and facts.uid:
            return msgspec.structs.replace(facts, any_uid=await self._serves_any(image, facts, unusable))
        return facts

    async def _try(self, image: ImageFacts, user: str, unusable: str) -> tuple[bytes, bytes, ExitStatus]:
        """Run the probe as `user`, in a sandbox without files and without an agent; return its output and status."""
        launch = self._launch(
            workspace_id=f"probe-{secrets.token_hex(4)}",
            image=image,
            command=("/bin/sh", "-c", _FIND_PYTHON, "sh", PROBE),
            user=user,
            limits=Limits(),
            tmpfs=(WORKSPACE_PATH,),
        )
        try:
            # A server that is stopped during its start cancels this; the container is removed all the same.
            sandbox = await self._background.whole(self._start(launch), undo=DockerSandbox.destroy)
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    status = await sandbox.wait()
                return *await sandbox.output(), status
            finally:
                await sandbox.destroy()
        except TimeoutError as exc:
            raise ImageError(unusable, f"its python gave no facts within {PROBE_SECONDS:g} s") from exc
        except SandboxError as exc:
            if exc.code != SandboxError.code:  # the engine, not the image
                raise
            raise ImageError(unusable, exc.reason or exc.message) from exc

    async def _serves_any(self, image: ImageFacts, facts: Facts, unusable: str) -> bool:
        """Return whether a user that the image does not know can use its python and kernels."""
        with contextlib.suppress(ImageError):
            said, _, status = await self._try(image, f"{self._any_uid}:{facts.gid}", unusable)
            found = parse_probe(_last_line(said), facts.env)
            if status.code == 0 and (found.python, found.kernelspecs) == (facts.python, facts.kernelspecs):
                return True
        log.warning("image_needs_its_own_user", image=self.name, uid=facts.uid)
        return False


def _facts(said: bytes, image: ImageFacts) -> Facts:
    return parse_probe(_last_line(said), image.sandbox_env)


def _last_line(said: bytes) -> bytes:
    """Return the last line: a warning may come before it."""
    return said.strip().rpartition(b"\n")[2]
