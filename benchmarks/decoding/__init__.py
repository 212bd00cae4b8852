"""On which workloads is decoding measured, with this project's engine and its peers?"""
