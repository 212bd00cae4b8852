"""What is pico? A small world of checkable tasks, and the model taught in it, the default."""
