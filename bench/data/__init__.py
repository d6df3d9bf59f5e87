"""Texts, data sets and open models that a benchmark reads."""
