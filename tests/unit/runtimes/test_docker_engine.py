"""The calls to an engine, without one: whose turn it is."""

import asyncio
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import docker
import pytest

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.docker import engine as docker_engine
from kernelbridge.runtimes.docker.engine import THREADS, Engine

PATIENCE = 20.0


def blocking_engine() -> Engine:
    """Return an engine whose calls take as long as their jobs."""
    api = SimpleNamespace(
        headers={}, timeout=1.0, api_version="1", base_url="", request=lambda: None, close=lambda: None, info=dict
    )
    return Engine(
        lambda **_: cast("docker.DockerClient", SimpleNamespace(api=api, close=lambda: None)), timeout=PATIENCE
    )


def wait(gate: threading.Event, _api: object) -> bool:
    return gate.wait(PATIENCE)


async def test_who_gives_up_just_when_its_turn_comes_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = blocking_engine()
    await engine.open()
    gates = [threading.Event() for _ in range(THREADS)]
    calls = [asyncio.create_task(engine.call(partial(wait, gate), doing="waiting")) for gate in gates]
    first, second = (asyncio.create_task(engine.call(lambda _: "called", doing="asking")) for _ in range(2))
    while len(engine._queue) < 2:  # noqa: ASYNC110 - it is the next of some turns
        await asyncio.sleep(0)
    pass_on = engine._pass_on

    def give_up_then(*_: Any) -> None:
        pass_on()
        first.cancel()

    try:
        with monkeypatch.context() as patched:
            patched.setattr(engine, "_pass_on", give_up_then)
            gates[0].set()
            await calls[0]
        assert await asyncio.wait_for(second, PATIENCE / 2) == "called"
        assert first.cancelled()
    finally:
        for gate in gates:
            gate.set()
        await asyncio.gather(*calls, first, second, return_exceptions=True)
    assert engine._calls == 0
    await engine.aclose()


async def test_an_engine_that_hangs_costs_one_time_out_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "SHORT_TIMEOUT", 0.1)
    engine = blocking_engine()
    await engine.open()
    gates = [threading.Event() for _ in range(3)]
    heard = asyncio.Event()
    listen, loop = engine._listen, asyncio.get_running_loop()

    def listening(future: Any) -> None:
        listen(future)
        loop.call_soon_threadsafe(heard.set)

    engine.timeout = 0.2
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_listen", listening)
        with pytest.raises(RuntimeUnavailable, match=r"longer than 0\.2 s"):
            await engine.call(partial(wait, gates[0]), doing="waiting")
    engine.timeout = PATIENCE
    for _ in range(2):
        with pytest.raises(RuntimeUnavailable, match=r"longer than 0\.1 s"):
            await engine.call(partial(wait, gates[1]), doing="waiting")
    gates[0].set()
    await asyncio.wait_for(heard.wait(), PATIENCE)
    engine.timeout = 0.3  # the whole time again
    with pytest.raises(RuntimeUnavailable, match=r"longer than 0\.3 s"):
        await engine.call(partial(wait, gates[2]), doing="waiting")
    for gate in gates:
        gate.set()
    await engine.aclose()
