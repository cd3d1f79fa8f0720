"""Workspaces that an earlier version wrote are brought up to date by ordered steps, once, after a copy of every changed file."""
