"""zfsiloctl for the blocks of the documentation: with made-up tools a simulation will do."""

import sys

from zfsilod.ctl import main, require_local

require_local.check_real = require_local.check_local
sys.exit(main())
