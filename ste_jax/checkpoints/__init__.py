"""How is a model kept with Orbax, and how is it read back?"""
