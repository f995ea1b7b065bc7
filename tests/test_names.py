import pytest

from corrdet.names import config_value, unknown_name


def test_messages():
    valid = ["correlation", "harmonic", "association"]
    assert unknown_name("coupling", "corelation", valid) == (
        "unknown coupling 'corelation'; did you mean 'correlation' or 'association'?"
    )
    assert unknown_name("coupling", "xyz", valid) == (
        "unknown coupling 'xyz'; there are: association, correlation, harmonic"
    )
    assert unknown_name("coupling", "xyz", []) == "unknown coupling 'xyz'; there are: none"
    assert unknown_name("key", "xyz", map(str, range(100))) == "unknown key 'xyz'"


def test_config_values_by_full_name():
    assert config_value({"A": {"B": {"C": 3}}}, "A.B.C") == 3
    with pytest.raises(KeyError):
        config_value({"A": {}}, "A.B.C")
