"""The shell around `core`: the command line, the served app, and what its pages share."""
