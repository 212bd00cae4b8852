"""The embedded default: a small world of checkable tasks, and a model that was taught in it."""
