"""`python -m kt_bttackler` is the command `kt-bttackler`."""

import sys

from kt_bttackler.cli import main

sys.exit(main())
