"""What a training needs beyond one device in full precision, and how its size is planned."""
