"""Sandboxes without a container engine: process trees in bubblewrap, or without isolation."""
