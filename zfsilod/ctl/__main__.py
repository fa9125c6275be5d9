"""`python -m zfsilod.ctl` runs zfsiloctl from a checkout."""

import sys

from zfsilod.ctl import main

sys.exit(main())
