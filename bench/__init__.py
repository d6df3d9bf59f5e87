"""What is measured, how, and the report."""
