"""Which tensor gets which type."""
