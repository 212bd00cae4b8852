"""What `benchmarks/train.py` runs."""
