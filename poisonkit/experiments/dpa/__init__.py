"""Studies around Deep Partition Aggregation, after Wang and Feizi, arXiv 2306.16415."""
