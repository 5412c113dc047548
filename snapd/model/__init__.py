# SPDX-License-Identifier: MIT
"""Values and rules: names, disks, the snapshot tree, the image graph, plans. Pure: no I/O, no asyncio."""
