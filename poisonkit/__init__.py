"""poisonkit: train, repair, certify and measure image classifiers when some of the training data is poisoned."""
