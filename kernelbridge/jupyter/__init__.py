"""Jupyter messaging: one kernel incarnation, its channels and its executions."""
