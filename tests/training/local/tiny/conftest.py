import random
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from agent_rft.datasets.filings import TOOLS, Filing, make_filings
from agent_rft.training.local.tiny.tokenizer import ARGUMENT, make_tokenizer
from serving.tools.corpus import CorpusTools


def tools_over(filings):
    return CorpusTools({filing.path: filing.html() for filing in filings}, TOOLS)


@pytest.fixture(scope="session")
def tools_of():
    return tools_over


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def filings() -> list[Filing]:
    return make_filings(["Crown Optics", "Crown Bank", "Raven Systems", "Jade Paper"], random.Random(3))


@pytest.fixture(scope="session")
def crown_optics(filings: list[Filing]) -> list[Filing]:
    return filings[:5]


@pytest.fixture(scope="session")
def call_tool(filings: list[Filing]) -> Callable[[str, str], str]:
    tools = tools_over(filings)
    return lambda name, argument: tools.call(name, {ARGUMENT[name]: argument})[0]
