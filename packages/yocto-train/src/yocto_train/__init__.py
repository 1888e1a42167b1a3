"""Train a yocto GPT: optimizers, schedules, checkpoints, exact resume."""
