"""Helpers for asyncio: owned tasks, blocking work in threads, and long work on the event loop in slices."""
