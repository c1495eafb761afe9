"""A report's text read strictly, as MAIRA-2's own processor reads it, by the parser that the client reads it with."""

from medimage_client.reports.grammar import FindingParser, ParsedFinding


class GrammarError(ValueError):
    """A text that is not of the grammar. The message says what is wrong and never quotes the text."""


def parse_strict(text: str) -> str | list[ParsedFinding]:
    """A plain text, stripped, or the findings of a grounded one.

    Raises:
        GrammarError: where that processor raises AssertionError or ValueError.
    """
    parser = FindingParser()
    findings = parser.feed(text)
    parser.finish()
    if parser.problem is not None:
        raise GrammarError(parser.problem)
    return findings if parser.is_grounded else text.strip()
