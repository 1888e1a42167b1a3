"""From texts to token files: a learner need not open these."""
