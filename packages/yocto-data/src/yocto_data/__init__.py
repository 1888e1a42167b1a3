"""Texts to token files to batches: memory-mapped, reproducible."""
