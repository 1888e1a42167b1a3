"""From texts to token files; what a learner need not open."""
