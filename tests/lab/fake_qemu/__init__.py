# SPDX-License-Identifier: MIT
"""A QEMU that is no process: it answers its monitors as a real one does, and fails where a test wants that.

Start reading at ``server``. Not here: answers that no QEMU gives (``lab.fake_monitor``), and a guest: nothing runs in it.
"""
