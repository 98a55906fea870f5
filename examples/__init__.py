"""Real data through the whole pipeline, and what a scheduler needs."""
