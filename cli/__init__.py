"""Flags, progress and tables: one module a verb, each a thin call of one library function."""
