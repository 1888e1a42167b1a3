"""Runs on disk: checkpoints, run directories, and how a training goes on from them."""
