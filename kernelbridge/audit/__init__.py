"""The audit log: one JSON line for each thing that an operator must be able to look up later."""
