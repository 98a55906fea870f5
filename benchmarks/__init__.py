"""What is claimed about speed, measured: each script compares in one run and prints a table. `python -m benchmarks`."""
