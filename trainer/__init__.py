"""Students: configuration, losses, the training loop, checkpoints, evaluation and reports."""
