"""Conversion between formats: XTuner's checkpoints, GGUF, shards of another size, a folder to publish."""
