import pytest
import torch

from concept_encoder.trainers.objectives.schedules import SCHEDULES, get_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_falls_from_one_to_about_zero(name):
    alpha = get_schedule(name).alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert alpha[0].item() == pytest.approx(1)
    assert alpha[-1].item() == pytest.approx(0, abs=1e-12)
    assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_elbo_weight_is_the_derivative_it_claims(name):
    schedule = get_schedule(name)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.elbo_weight(t), -slope / (1 - schedule.alpha(t)))


def test_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown noise schedule 'quadratic'\. Available: linear, cosine$"):
        get_schedule("quadratic")
