"""`python -m ste_jax.cli` is `ste`."""

import sys

from ste_jax.cli import main

sys.exit(main())
