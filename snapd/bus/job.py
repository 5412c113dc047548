# SPDX-License-Identifier: MIT
"""The face ``org.domsnap1.Job``: one operation, how far it is and how it ended."""

from collections.abc import Mapping
from typing import Any

from snapd.bus.errors import to_bus
from snapd.bus.faces import Caller, Method
from snapd.bus.marshal import snapshot_or_none
from snapd.bus.names import JOB_INTERFACE, domain_path
from snapd.service.host import Host
from snapd.service.jobs import Job


class JobFace:
    interface = JOB_INTERFACE

    def __init__(self, job: Job, host: Host) -> None:
        self._job, self._host = job, host

    def methods(self) -> Mapping[str, Method]:
        return {"Wait": self.wait}

    def properties(self) -> Mapping[str, Any]:
        job = self._job
        _, error_name, error_message, snapshot = self.outcome()
        return {
            "Operation": job.operation,
            "Domain": domain_path(job.domain),
            "Snapshot": snapshot,
            "State": job.state.value,
            "Step": job.step,
            "Progress": job.progress or 0.0,
            "ProgressValid": job.progress is not None,
            "Bytes": job.done_bytes,
            "StartUSec": job.started_usec,
            "StartedByUID": job.caller_uid,
            "Notes": list(job.notes),
            "ErrorName": error_name,
            "ErrorMessage": error_message,
        }

    def outcome(self) -> tuple[str, str, str, str]:
        """Return what ``Wait`` answers and ``Completed`` tells: result, error name, message, snapshot."""
        job = self._job
        error = to_bus(job.error) if job.error else None
        snapshot = snapshot_or_none(self._host.domains.get(job.domain), job.snapshot)
        return job.state.value, error.name if error else "", error.message if error else "", snapshot

    async def wait(self, _caller: Caller) -> tuple[str, str, str, str]:
        await self._job.ended.wait()
        return self.outcome()
