"""The project's container images: their base, their build contexts, the build and its progress."""
