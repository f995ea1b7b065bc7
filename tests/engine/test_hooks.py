from types import SimpleNamespace

import pytest
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventWriter

from corrdet.engine.hooks import WriterOfEvaluations


class Writer(EventWriter):
    def __init__(self, write):
        self.write = write


@pytest.mark.parametrize("period, expected", [(5, [4, 7, 9, 11]), (0, [7, 11])])
def test_evaluations_are_written_at_once(period, expected):
    iterations = []
    writer = Writer(lambda: iterations.append(hook.trainer.iter))
    hook = WriterOfEvaluations(PeriodicWriter([writer], period=8), period)
    for iteration in range(12):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=12)
        hook.after_step()
    assert iterations == expected
