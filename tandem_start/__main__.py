"""`python -m tandem_start`: the command line, as a job starts it."""

import sys

from tandem_start import main

sys.exit(main())
