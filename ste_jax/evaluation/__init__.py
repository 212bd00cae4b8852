"""How good is a judge: benchmarks read, judgments counted, judges compared."""
