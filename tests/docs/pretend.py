"""zfsiloctl for the blocks of the documentation: with made-up tools a simulation will do."""

import sys

from zfsilod.ctl import here, main

here.check_real = here.check_local
sys.exit(main())
