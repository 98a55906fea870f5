"""A trained tower at work: scoring Arrow batches."""
