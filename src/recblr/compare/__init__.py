"""Trained models beside one another."""
