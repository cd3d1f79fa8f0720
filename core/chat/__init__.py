"""Answering: one base model, any number of adapters over it, all rows in one batch."""
