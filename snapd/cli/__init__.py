# SPDX-License-Identifier: MIT
"""The command line tool: a D-Bus client, and nothing of the daemon."""
