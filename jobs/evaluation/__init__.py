"""What an evaluation compares, collected from tables into arrays."""
