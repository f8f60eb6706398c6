"""What the EPIC paper measures of poisons and of training beside accuracy and attack success."""
