"""What going on from a trained model adds: low-rank adapters, and new rows in its vocabulary."""
