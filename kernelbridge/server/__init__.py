"""The aiohttp server: its routes, who may connect, the WebSockets and the files API."""
