"""Self-Taught Evaluators in JAX: an LLM judge that trains itself, from one host to a TPU pod."""

__version__ = "0.1.0"
