"""The interactive terminals of `open_terminal`: their shells, the connections that show them, their scrollback."""
