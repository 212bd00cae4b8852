"""What answers prompts: the protocol that stages speak, and who provides it."""
