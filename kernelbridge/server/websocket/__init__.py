"""One client's connection: its bytes, its WebSocket messages, the handlers of requests and the answers."""
