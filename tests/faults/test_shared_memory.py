"""Shared memory that takes all of a session's memory: its cell says so, and the session goes on."""

from tests.integration.conftest import StartServer

FILL = """
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=400 << 20)
for place in range(0, len(block.buf), 4096):
    block.buf[place] = 1
"""


async def test_shared_memory_that_takes_all_memory(start_server: StartServer) -> None:
    server = await start_server(memory="256m")
    async with server.connect("u") as client:
        died = await client.run(FILL)
        assert (died["success"], died["cause"], died["statePreserved"]) == (False, "out_of_memory", False)
        assert "/dev/shm" in died["error"]
        freed = await client.shell("rm -f /dev/shm/*; df --output=used /dev/shm | tail -1")
        assert freed["output"].split() == ["0"], freed
        assert (await client.run("print('goes on')"))["output"] == "goes on\n"
