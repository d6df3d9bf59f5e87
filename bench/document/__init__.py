"""`bench.json`: its schema, reading it, and what pages are built of."""
