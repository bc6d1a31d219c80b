"""The cells of a session: their queue, the running cell, interrupts, and the kernel's life."""
