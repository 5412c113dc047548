# SPDX-License-Identifier: MIT
"""``python -m snapd`` is ``domsnapd``."""

from snapd.daemon import main

if __name__ == "__main__":
    main()
