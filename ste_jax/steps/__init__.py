"""The steps of the recipe: each joins a stage, a model and the run's tables, and can be run
again."""
