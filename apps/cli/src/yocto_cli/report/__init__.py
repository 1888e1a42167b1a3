"""What a run leaves for reading: report.html, its summary, the files of TensorBoard."""
