"""Adoption: what a server records about open sessions, and how the next server takes them over."""
