"""Jobs on a running cluster over its dashboard's HTTP interface: submit, follow, cancel."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.session import TOKEN_REMEDY, first_line, is_about_token, prepare_environment, require_server
from scoring.errors import InputError

RETRY_SECONDS = 3.0
START_PATIENCE = 10  # times that a head without an agent is asked
PATIENCE = 40  # times that following asks in vain before it gives up
# A cancelled job has this long to stop its branches and close its record; Ray's own 3 s are too short for that.
STOP_SECONDS = 60
log = logging.getLogger(__name__)
# They tell of every upload and connection, and set their own level when imported.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class Jobs:
    """The jobs of the cluster whose dashboard answers at `address` (`http://host:8265`).

    Raises
    ------
    InputError
        If the address is no URL, nothing answers there or it asks for a token.
    """

    def __init__(self, address: str) -> None:
        if urlsplit(address).scheme not in ("http", "https"):
            raise InputError(f"--address {address}: give the dashboard's, such as http://127.0.0.1:8265")
        require_server(address, "Ray dashboard", "start a cluster with one, or forward its port")
        prepare_environment(address)
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address = address
        try:
            self._client = JobSubmissionClient(address)
        except (RuntimeError, ConnectionError) as error:
            raise InputError(f"{address}: {first_line(error)}; {TOKEN_REMEDY}") from None

    def submit(self, command: str, folder: Path) -> str:
        """Run a shell command in a copy of `folder` on the cluster's head; the job's id."""
        job_id = f"tutti-{secrets.token_hex(4)}"
        variables = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        environment = {"working_dir": str(folder), "env_vars": variables}
        for attempt in range(1, START_PATIENCE + 1):
            try:
                self._client.submit_job(entrypoint=command, runtime_env=environment, submission_id=job_id)
                break
            except (RuntimeError, ConnectionError) as error:
                remedy = (
                    TOKEN_REMEDY if is_about_token(error) else "see the logs of the cluster's head, and submit again"
                )
                starting = "agent" in str(error).lower()  # of a head whose dashboard answers before it has one
                if not starting or attempt == START_PATIENCE:
                    raise InputError(f"{self.address} takes no job: {first_line(error)}; {remedy}") from None
                log.warning("%s: %s; trying again", self.address, first_line(error))
                time.sleep(RETRY_SECONDS)
        return job_id

    def follow(self, job_id: str, write: Callable[[str], Any]) -> int:
        """Pass the job's log on from its start until the job ends; its exit code.

        A connection that breaks is taken up again.

        Raises
        ------
        InputError
            If there is no such job, or the dashboard stays away.
        """
        self._info(job_id)
        shown = failed = 0
        while True:
            try:
                # Nothing else runs in the loop: a request that blocks in it would keep Ctrl-C from being heeded.
                shown += asyncio.run(self._tail(job_id, shown, write))
                info = self._info(job_id)
                failed = 0
            except (OSError, RuntimeError) as error:
                failed += 1
                if failed > PATIENCE:
                    raise InputError(f"{self.address} no longer answers ({error}); follow {job_id} later") from None
            else:
                if info.status.is_terminal():
                    return _exit_code(info, write)
            time.sleep(RETRY_SECONDS)

    async def _tail(self, job_id: str, shown: int, write: Callable[[str], Any]) -> int:
        """Show the log from the character at `shown`; the number of characters that were new."""
        position = 0
        async for text in self._client.tail_job_logs(job_id):
            new = text[max(0, shown - position) :]
            position += len(text)
            if new:
                write(new)
        return max(0, position - shown)

    def cancel(self, job_id: str) -> str:
        """Ask the job to stop, and wait until it has; its state then."""
        self._info(job_id)
        self._client.stop_job(job_id)
        while not (info := self._info(job_id)).status.is_terminal():
            time.sleep(0.5)
        return str(info.status.value)

    def _info(self, job_id: str) -> Any:
        try:
            return self._client.get_job_info(job_id)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                raise InputError(f"{self.address} has no job {job_id}") from None
            if is_about_token(error):
                raise InputError(f"{self.address}: {first_line(error)}; {TOKEN_REMEDY}") from None
            raise


def _exit_code(info: Any, write: Callable[[str], Any]) -> int:
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        write(f"{info.status.value}: {info.message}\n")
    return info.driver_exit_code if info.driver_exit_code and info.driver_exit_code > 0 else 1
