"""The document of the differences and their tests name the same differences."""

import pathlib
import re

from tests.optwrap import test_differences_multi_steps, test_differences_wrappers

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "differences-from-optax.md"


def test_every_difference_is_documented_and_every_documented_one_is_tested() -> None:
    """The document cites exactly the tests of the two modules."""
    cited = re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    modules = (test_differences_multi_steps, test_differences_wrappers)
    tests = [name for module in modules for name in vars(module) if name.startswith("test_")]
    assert sorted(cited) == sorted(tests)
