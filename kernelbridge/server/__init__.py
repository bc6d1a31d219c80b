"""The aiohttp server: routes, access, one WebSocket each."""
