"""MLflow: the ledger's records as runs, now or later."""
