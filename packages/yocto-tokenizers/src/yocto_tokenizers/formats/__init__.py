"""Plumbing: the files in which tokenizers are kept, ours and those of others."""
