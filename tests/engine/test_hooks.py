from types import SimpleNamespace

import pytest

from corrdet.engine.hooks import WriteEvaluations


@pytest.mark.parametrize("period, expected", [(5, [4, 9]), (0, [])])
def test_evaluations_are_written_at_once(period, expected):
    iterations = []
    writer = SimpleNamespace(write=lambda: iterations.append(hook.trainer.iter))
    hook = WriteEvaluations([writer], period)
    for iteration in range(12):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
    assert iterations == expected
