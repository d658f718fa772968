"""Train a model on the training part of a log."""
