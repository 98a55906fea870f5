"""Batches -> vectors: towers and frozen encoders, and the files that a trained one is saved as."""
