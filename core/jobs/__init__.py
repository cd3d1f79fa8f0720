"""Work that outlives whoever asked for it: a folder with its state, and a detached process."""
