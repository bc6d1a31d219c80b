"""The life of a session's sandbox: admission, start, pause, resume and end."""
