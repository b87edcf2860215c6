"""Starts the core out of the file that ``make pyz`` makes. This file must be readable by any Python."""

import os
import sys

if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write("offline-rebuild needs Python 3.9 or newer; this is %s\n" % sys.version.split()[0])  # noqa: UP031
    sys.exit(69)
# processes that are started from here find the core wherever they run
sys.path[0] = os.path.abspath(sys.path[0])

from offline_rebuild.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.path.basename(sys.argv[0])))
