"""Searches for the best tensor types for a target size or loss."""
