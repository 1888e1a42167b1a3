"""Models on disk: folders that Hugging Face's libraries open, and the other way round."""
