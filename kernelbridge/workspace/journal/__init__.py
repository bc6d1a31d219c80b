"""A session's numbered events: delivery to connections, and replay for clients that return."""
