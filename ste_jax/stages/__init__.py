"""The stages of the recipe: plain Python over rows and a generator, no JAX."""
