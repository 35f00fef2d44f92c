"""`python -m rmt_jax.cli`: the same as `rmt`."""

import sys

from rmt_jax.cli.main import main

sys.exit(main())
