"""Converted files that are kept in the cache."""
