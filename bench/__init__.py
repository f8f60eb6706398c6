"""What poisonkit's kernels reach on this machine, against the machine's limit and what one would use instead."""
