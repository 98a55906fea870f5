"""From a batch to better weights: loss, frequencies, objective, optimiser, the loop, checkpoints."""
