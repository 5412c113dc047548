# SPDX-License-Identifier: MIT
"""The order of steps of each verb and how to undo them; it reaches the world only through its ports."""
