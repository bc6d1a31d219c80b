"""What becomes of sessions when their server is killed or replaced."""
