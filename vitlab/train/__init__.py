"""Training: the loop, its optimizer, evaluation, checkpoints and processes."""
