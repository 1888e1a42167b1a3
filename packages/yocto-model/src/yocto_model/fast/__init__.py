"""What makes training and generation cheaper, and is not needed to understand the model."""
