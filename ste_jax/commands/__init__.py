"""What do the commands do that are not steps of the recipe?"""
