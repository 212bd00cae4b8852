"""What are the steps of the recipe? Each step joins a stage, a model and the run's tables."""
