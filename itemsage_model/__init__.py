"""The item tower in PyTorch: knows tensors, never Spark. Importing a module here has no side effects."""
