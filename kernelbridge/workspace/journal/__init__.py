"""A session's numbered events: who hears them, and replay for clients that come back."""
