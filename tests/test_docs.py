"""The pages whose examples are run: they give what they show."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["sphere.md"])
def test_examples_give_what_they_show(page):
    examples = "\n".join(re.findall(r"^```python\n(>>> .*?)^```", (DOCS / page).read_text(), re.S | re.M))
    test = doctest.DocTestParser().get_doctest(examples, {}, page, page, 0)
    found = doctest.DocTestRunner().run(test)
    assert found.attempted > 0 and not found.failed
