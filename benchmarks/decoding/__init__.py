"""The workloads that decoding is measured on, this project's engine and its peers."""
