"""Batch jobs: files of requests, answered in the order of their lines, which continue after they were killed."""
