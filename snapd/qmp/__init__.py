# SPDX-License-Identifier: MIT
"""The QMP wire: its vocabulary, and keeping one connection to each monitor alive."""
