"""Something else in the place of a sandbox's agent when the next server comes."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from tests.adoption.house import House, docker_only, result, resume

pytestmark = docker_only


@contextlib.asynccontextmanager
async def passing_foreign_descriptors(directory: Path) -> AsyncIterator[None]:
    """Pass everything on between a server and the agent, but /dev/zero in the place of a program's output."""
    loop = asyncio.get_running_loop()

    def relay(source: socket.socket, target: socket.socket, *, answers: bool) -> None:
        def pass_on() -> None:
            data, fds, _, _ = socket.recv_fds(source, 4096, 3)
            if not data:
                loop.remove_reader(source)
                target.shutdown(socket.SHUT_RDWR)
                return
            if answers and b'"attached"' in data:
                fds.append(os.open("/dev/zero", os.O_RDONLY))
                os.close(fds.pop(0))
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(target, [data], fds)
            for fd in fds:
                os.close(fd)

        loop.add_reader(source, pass_on)

    async def serve(listener: socket.socket, agent: socket.socket) -> None:
        server, _ = await loop.sock_accept(listener)
        with server:
            relay(server, agent, answers=False)
            relay(agent, server, answers=True)
            try:
                await loop.create_future()
            finally:
                loop.remove_reader(server)
                loop.remove_reader(agent)

    (directory / "socket").rename(directory / "agents")
    home = os.open(directory, os.O_RDONLY)  # the path of a socket ends at 107 bytes
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    with sockets[0] as listener, sockets[1] as agent:
        listener.bind(f"/proc/self/fd/{home}/socket")
        listener.listen()
        agent.connect(f"/proc/self/fd/{home}/agents")
        os.close(home)
        for each in sockets:
            each.settimeout(0)
        serving = loop.create_task(serve(listener, agent))
        yield
        serving.cancel()
        await asyncio.wait({serving})


async def test_an_agent_that_passes_other_descriptors_costs_the_sandbox_which_the_session_is_told(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await client.ask(type="save_file", sessionId="s", filename="kept", content="y")
        await server.kill()
    before = house.sandboxes()
    [directory] = (house.data_dir / "run").glob("*/agent")
    async with passing_foreign_descriptors(directory):
        server = await house.serve()
        async with house.connect(server) as client:
            await resume(client)
            await client.send(
                type="execute_code", sessionId="s", code="print(open('kept').read(), 'x' in globals())", requestId="n"
            )
            answer = await result(client, "n")
    assert (answer["output"], answer["statePreserved"]) == ("y False\n", False)
    assert "variables are lost" in answer["lateOutput"]
    assert len(house.sandboxes()) == 1
    assert house.sandboxes() != before
    assert "broke its protocol" in server.log.read_text()
