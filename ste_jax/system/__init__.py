"""What does this package ask of the machine: files, signals, the terminal, JAX's settings?"""
