"""What does each command do that is not a step of the recipe?"""
