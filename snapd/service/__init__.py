# SPDX-License-Identifier: MIT
"""Which domains exist, one mutation at a time per domain, jobs, and the fan-out of events."""
