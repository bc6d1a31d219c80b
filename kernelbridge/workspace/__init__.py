"""The server's side of sessions: sandbox, kernel, shell, terminals, files, events."""
