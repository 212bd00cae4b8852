"""What does each section of a run's HTML report show?"""
