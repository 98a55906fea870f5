"""What a ranking is worth, and what it is compared with. Knows arrays, no tower."""
