"""`bench.json`: its schema, reading it, and the blocks of a report."""
