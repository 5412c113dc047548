# SPDX-License-Identifier: MIT
"""The D-Bus face of the service; the only package in which Variant appears."""
