"""A small GPT: the model, its cache, its text generation."""
