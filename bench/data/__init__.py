"""The texts and data sets that a benchmark reads."""
