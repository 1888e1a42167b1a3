"""Conversations to token files with a mask, and to batches: texts alone need none of it."""
