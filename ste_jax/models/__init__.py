"""The decoder, and the forms that its weights come in."""
