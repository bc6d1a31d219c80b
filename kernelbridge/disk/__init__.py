"""How much of the disk each session uses, and what happens at its limit."""
