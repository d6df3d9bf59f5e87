"""Benchmarks: quality, speed and size of files, and their reports."""
