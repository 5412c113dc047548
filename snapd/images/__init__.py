# SPDX-License-Identifier: MIT
"""qemu-img, image files, and the memory-state container."""
