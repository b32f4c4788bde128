"""From scans to files of predictions: what is unlike training, what is written, and where."""
