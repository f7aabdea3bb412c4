import socket

import pytest

from orchestrator.tracking.ui import serve
from scoring.errors import InputError
from tests.commands import free_port


def test_what_cannot_be_served_is_told(tmp_path):
    """What can be is in tests/test_readme.py."""

    def refused(told, port=0):
        with pytest.raises(InputError, match=told):
            serve(tmp_path, port, print)

    refused("no such store; a run with --tracking-uri is shown by that server")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    refused(r"mlflow.db: no MLflow store \(file is not a database\)", free_port())
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused("is taken; give another --port", other.getsockname()[1])
