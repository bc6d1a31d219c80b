"""What goes wrong, injected into real processes: what clients see, what survives (docs/explanation/reliability.md)."""
