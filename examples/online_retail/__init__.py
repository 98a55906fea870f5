"""Online Retail: a real shop through the whole pipeline."""
