"""Training: the loop, its optimizer, evaluation, checkpoints and processes."""


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; starting it again continues exactly there."""
