"""What would a program need on a TPU slice that is not at hand?"""
