"""Jobs on a running cluster, over its dashboard's HTTP interface; `ray job` does the rest under Ray's own names."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.session import TOKEN_REMEDY, first_line, prepare_environment, require_server
from scoring.errors import InputError

# A job that is stopped has this long to stop its branches and close its record; Ray's own 3 s are too short for that.
STOP_SECONDS = 60
# They tell of every upload and connection, and set their own level when imported.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def submit_job(address: str, command: str, folder: Path) -> str:
    """Run a shell command in a copy of `folder` on the head of a cluster; the job's id.

    `InputError` if the address is no URL (`http://host:8265`), nothing answers there, or it takes no job.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"--address {address}: give the dashboard's, such as http://127.0.0.1:8265")
    require_server(address, "Ray dashboard", "start a cluster with one, or forward its port")
    prepare_environment(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # the client would go to RAY_ADDRESS, whatever it is given
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    variables = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    try:
        environment = {"working_dir": str(folder), "env_vars": variables}
        return JobSubmissionClient(address).submit_job(entrypoint=command, runtime_env=environment)
    except Exception as error:  # Ray's client raises whatever its parts do
        remedy = f"see the logs of the cluster's head, or, {TOKEN_REMEDY}"
        raise InputError(f"{address} takes no job: {first_line(error)}; {remedy}") from None


def follow_job(address: str, job_id: str, write: Callable[[str], Any]) -> int:
    """Pass a job's log on from its start until the job ends; its exit code.

    `InputError` if the connection breaks before; the job goes on.
    """
    from ray.job_submission import JobSubmissionClient

    async def pass_on() -> None:
        async for text in client.tail_job_logs(job_id):
            write(text)

    try:
        client = JobSubmissionClient(address)
        # Nothing else runs in the loop: a request that blocks in it would keep Ctrl-C from being heeded.
        asyncio.run(pass_on())
        job = client.get_job_info(job_id)
    except Exception as error:  # of the network, and of what Ray's client is made of
        remedy = f"`ray job logs -f {job_id}` takes it up, the job goes on"
        raise InputError(f"the log of {job_id} breaks off ({first_line(error)}); {remedy}") from None
    if job.status.value == "SUCCEEDED":
        return 0
    if job.driver_exit_code and job.driver_exit_code > 0:
        return job.driver_exit_code
    write(f"{job.status.value}: {job.message}\n")  # it was stopped, or has not even begun
    return 1
