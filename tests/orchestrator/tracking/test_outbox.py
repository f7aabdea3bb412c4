from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.tracker import Tracker
from tests.commands import free_port
from tests.orchestrator.ledgers import EXPERIMENT, Ledger, finished_branch


def test_what_cannot_be_sent_is_told_once_and_sent_later(tmp_path, shared, caplog):
    ledger, table = Ledger(tmp_path / "out", shared), tmp_path / "out" / "branches" / "a-b-0" / "tables" / "knn.parquet"
    finished_branch(ledger.out, "a/b/0")
    away = Outbox(Tracker(f"http://127.0.0.1:{free_port()}", EXPERIMENT, "1", "f"), ledger.out)
    assert [away.send(), away.send(), away.close("FINISHED")] == [1, 1, 2]
    assert caplog.text.count("no MLflow server answers") == 1
    assert f"results are kept in {ledger.out} and sent later" in caplog.text
    # A branch of which only a part was sent is sent again.
    table.rename(tmp_path / "away")
    outbox = ledger.outbox
    assert [outbox.send(), outbox.send(), ledger.outbox.send()] == [1, 1, 1]
    assert caplog.text.count("results are kept") == 3
    finished_branch(ledger.out, "a/b/1")
    assert [outbox.send(), outbox.send()] == [1, 1]  # MLflow answers, so the next complaint is news
    assert caplog.text.count("results are kept") == 4
    (tmp_path / "away").rename(table)
    assert ledger.outbox.close("FINISHED") == 0
    assert set(ledger.runs) == {"out", "a/b/0", "a/b/1"}
    assert ledger.artifacts("a/b/0") == {"tables", "record.json"}
