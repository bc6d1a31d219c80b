"""What goes wrong, injected into real processes: what the client is told, and what survives (docs/reliability.md)."""
