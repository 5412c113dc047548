# SPDX-License-Identifier: MIT
"""domsnapd: snapshots of QEMU virtual machines as a system service."""
