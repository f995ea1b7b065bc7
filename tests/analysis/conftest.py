import pytest


@pytest.fixture
def without_figures(monkeypatch):
    """Figures take most of a report's time; tests of other things do without."""
    monkeypatch.setattr("corrdet.analysis.svg._svg", lambda *_, **__: "<svg></svg>")
