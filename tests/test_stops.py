"""Signals at awkward moments: during an import, to worker processes, a second one."""

import os
import signal
import time

import pytest
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from deepmi import cli, process, run_log
from deepmi.process import workers_without_interrupt


def blocked_signals():
    """The signals that this process blocks."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_stop_waits_until_the_imports_of_a_script_have_ended_and_a_second_one_changes_nothing(capsys):
    args = cli.parse(cli.new_parser("x"), [])
    os.kill(os.getpid(), signal.SIGTERM)  # as while torch is imported
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda _: time.sleep(20), args)
    signal.raise_signal(signal.SIGINT)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert leaving.value.code == 143 and "stopped." in line


@pytest.mark.parametrize(("signals", "patience", "saved"), [(1, 5.0, 4), (2, 5.0, 1), (1, 0.1, 1)])
def test_a_stopped_training_saves_the_epoch_that_ends_soon(tmp_path, capsys, monkeypatch, signals, patience, saved):
    checkpoint = tmp_path / "x.pt.tar"
    monkeypatch.setattr(process, "STOP_PATIENCE", patience)

    def training(args):
        run = run_log.TrainingRun(checkpoint, {}, {}, {}, True)
        run.start()
        for epoch in range(10):
            if epoch == 3:
                for _ in range(signals):
                    signal.raise_signal(signal.SIGTERM)
                time.sleep(0.3)
            run.end_epoch({"epoch": epoch, "validation_ccc_loss": 1.0}, {})
            if run.save_is_due():
                run.save({}, checkpoint.touch)
            run._save_cost = 1000.0  # so that no further save is due

    with pytest.raises(SystemExit) as leaving:
        cli.run(training, cli.parse(cli.new_parser("x"), []))
    assert leaving.value.code == 143
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(f"The same command continues after {saved} epochs.")
    again = run_log.TrainingRun(checkpoint, {}, {}, {}, True)
    again.start()
    assert len(again.history) == saved


def test_workers_leave_interrupts_to_the_process_that_started_them():
    before = blocked_signals()
    get_reusable_executor().shutdown(wait=True)  # those of an earlier test would be taken again
    with Parallel(n_jobs=2, return_as="generator") as pool:
        with workers_without_interrupt():
            results = pool(delayed(blocked_signals)() for _ in range(4))
        assert all(signal.SIGINT in blocked for blocked in results)
    assert blocked_signals() == before and signal.SIGINT not in before
