"""The learning rate at every step, by schedule."""

from __future__ import annotations

import pytest

from les_md.training.configuration import TrainingSection
from les_md.training.learning_rate import LearningRate


def rates(**settings) -> list[float]:
    section = TrainingSection(**({"epochs": 10, "learning_rate": 0.1, "warmup_steps": 0} | settings))
    learning_rate = LearningRate(section, 0.1, 100)
    return [learning_rate.at(step) for step in range(101)]


def test_cosine():
    values = rates()
    assert values[0] == 0.1 and values[50] == pytest.approx(0.05) and values[100] == pytest.approx(0.0, abs=1e-15)
    values = rates(final_learning_rate=0.02)
    assert values[0] == 0.1 and values[50] == pytest.approx(0.06) and values[100] == pytest.approx(0.02)
    assert sorted(values, reverse=True) == values


def test_exponential():
    values = rates(learning_rate_schedule="exponential", final_learning_rate=0.025)
    assert values[0] == 0.1 and values[50] == pytest.approx(0.05) and values[100] == pytest.approx(0.025)
    assert rates(learning_rate_schedule="exponential")[100] == pytest.approx(0.001)


def test_constant_and_warm_up():
    assert set(rates(learning_rate_schedule="constant")) == {0.1}
    values = rates(learning_rate_schedule="constant", warmup_steps=4)
    assert values[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_plateau():
    section = TrainingSection(
        10, learning_rate=0.1, warmup_steps=0, learning_rate_schedule="plateau", plateau_factor=0.1, plateau_patience=2
    )
    learning_rate, seen = LearningRate(section, 0.1, 100), []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 0.9, 0.9, 0.9):
        learning_rate.validated(loss)
        seen.append(learning_rate.at(7))
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.001])
    # Its memory is its state.
    again = LearningRate(section, 0.1, 100, **learning_rate.state())
    assert again == learning_rate
