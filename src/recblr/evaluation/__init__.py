"""Evaluation: full ranking, metrics and paired tests."""
