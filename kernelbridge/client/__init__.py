"""The Python client: `Client` for programs, notebooks and threads, `AsyncClient` for asyncio.

It imports nothing of the server but its tree of errors, and needs aiohttp only. It reads frames as dictionaries: the
server checks what it is sent, and a client must take fields that it does not know. So it does without
`kernelbridge.protocol`, which would bring msgspec.
"""
