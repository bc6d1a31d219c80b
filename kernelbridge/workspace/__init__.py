"""A session's server-side life: sandbox, kernel, shell, files."""
