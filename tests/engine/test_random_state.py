import io
import random

import numpy as np
import torch

from corrdet.engine.random_state import get_random_states, set_random_states


def draw():
    return random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(1).item()


def test_states_survive_a_weights_only_checkpoint():
    draw()  # gauss and randn keep a second value
    file = io.BytesIO()
    torch.save(get_random_states(), file)
    expected = [draw() for _ in range(3)]
    file.seek(0)
    set_random_states(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected
