"""The interactive terminals of `open_terminal`: their shells, their viewers and what they showed last."""
