"""`python -m anchored`, for `torchrun -m anchored pretrain ...` and `accelerate launch -m`."""

import sys

from anchored.cli import main

sys.exit(main())
