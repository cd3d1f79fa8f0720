"""Choosing the checkpoint: probes asked of every snapshot, metrics over the answers, a rule, and the reason in words."""
