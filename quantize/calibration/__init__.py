"""Importance: collecting it over a text, and the files that hold it."""
