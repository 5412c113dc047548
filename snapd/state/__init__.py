# SPDX-License-Identifier: MIT
"""libxl-json, directories, durability, and the intent record."""
