"""A test that needs LLaMA-Factory and does not say so fails where LLaMA-Factory is installed too."""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec

import needs_llamafactory
import pytest
from needs_llamafactory import INSTALLED, whole_module

installed = pytest.mark.skipif(not INSTALLED, reason="shows what happens where LLaMA-Factory is installed")


@installed
def test_an_import_without_the_marker_fails_and_is_told_the_marker():
    for _ in range(2):  # not only the first time
        with pytest.raises(pytest.fail.Exception, match=r"llamafactory is imported .* marker `llamafactory`.*-> mark "):
            import llamafactory.hparams  # noqa: F401  # the import is the test
    assert not any(name.startswith("llamafactory") for name in sys.modules)


@installed
def test_our_own_modules_that_import_it_are_refused_as_well():
    with pytest.raises(pytest.fail.Exception, match="marker `llamafactory`"):
        import dataflex.integrations.llamafactory.tokenized_sources  # noqa: F401  # the import is the test


@installed
def test_its_sources_and_its_version_may_be_read():
    assert find_spec("llamafactory").origin.endswith("__init__.py")
    assert version("llamafactory")


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("pytestmark = pytest.mark.llamafactory\n", True),
        ("pytestmark = [pytest.mark.slow, pytest.mark.llamafactory]\n", True),
        ("pytestmark = pytest.mark.slow\n", False),
        ("@pytest.mark.llamafactory\ndef test_one(): ...\n", False),
    ],
)
def test_a_module_is_marked_as_a_whole_by_its_pytestmark_alone(tmp_path, text, marked):
    file = tmp_path / "test_it.py"
    file.write_text("import pytest\n" + text)
    assert whole_module(file) is marked


def test_the_fixtures_that_mark_a_test_are_there(request):
    for name in needs_llamafactory.FIXTURES:
        assert f"def {name}(" in (request.config.rootpath / "tests/integration/conftest.py").read_text(encoding="utf-8")
