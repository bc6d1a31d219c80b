"""Programs that run inside a sandbox, in the hands of user code."""
