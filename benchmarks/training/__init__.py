"""Which trainings does `benchmarks/train.py` time, of this project and of its peer?"""
