"""The search for the types that a target allows."""
