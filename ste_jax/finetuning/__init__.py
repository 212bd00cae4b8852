"""Supervised fine-tuning: packing, loss, optimizer, step and the resumable loop."""
