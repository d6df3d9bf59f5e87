"""The importance matrix: collecting it over a text, and reading and writing its files."""
