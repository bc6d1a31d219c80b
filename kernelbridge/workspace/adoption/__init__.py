"""Adoption: what a server notes about open sessions, and how the next server takes them over."""
