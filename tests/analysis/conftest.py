from tests.helpers.report import without_figures  # noqa: F401
