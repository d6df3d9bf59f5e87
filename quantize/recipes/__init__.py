"""Recipes: the type of each tensor."""
