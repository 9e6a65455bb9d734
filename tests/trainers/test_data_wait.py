import pytest

from concept_encoder.trainers.training import data_wait
from concept_encoder.trainers.training.data_wait import DataWait


@pytest.mark.slow
def test_data_and_steps_are_told_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: now[0])
    wait = DataWait()
    assert wait.share() == wait.share_since_last_call() == 0

    def step(data, learning, evaluating=0.0):
        with wait.getting_data():
            now[0] += data
        now[0] += learning
        wait.on_step_end()
        now[0] += evaluating

    step(1.0, 3.0)
    assert wait.share() == wait.share_since_last_call() == pytest.approx(0.25)
    step(1.0, 0.0, evaluating=100.0)
    wait.on_step_end()  # at the end of an epoch
    step(1.0, 2.0)
    assert wait.share_since_last_call() == pytest.approx(2 / 4)
    assert wait.share() == pytest.approx(3 / 8)
