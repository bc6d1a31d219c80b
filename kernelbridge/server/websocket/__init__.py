"""One client's connection: its TCP stream, its WebSocket frames, the handlers of its requests, and the answers."""
