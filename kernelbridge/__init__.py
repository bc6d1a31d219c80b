"""kernelbridge: a warm Python, in a container, behind one small WebSocket."""

__version__ = "0.1.0"
