"""The OpenAPI document as one HTML page to read, without scripts and without anything from elsewhere."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

SHOWN_NUMBERS = 3  # of a long list, such as an embedding
LONG = 8  # entries

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f4f6f8; --text: #1f2328; --page: #fff; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4149; --soft: #1b2026; --text: #dde3ea; --page: #101418; --mark: #6cb2ff; }
}
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
a, .method { color: var(--mark); }
code, pre { font: .85rem/1.45 ui-monospace, monospace; background: var(--soft); border-radius: 4px; }
code { padding: .1em .3em; }
pre { padding: .8rem; overflow-x: auto; }
h2 code, h3 code { font-size: 1em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
summary { cursor: pointer; margin: .4rem 0; }
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML5, readable under the policy `default-src 'none'; style-src 'unsafe-inline'`.

    Args:
        document: OpenAPI 3.0.3, whose references are all to its own components.
    """
    info = document["info"]
    title = escape(info["title"])
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>",
            f"<p>Version {escape(info['version'])}. {prose(info.get('description', ''))}</p>",
            *calling(document),
            *contents(document),
            *(
                part
                for path, method, operation in operations(document)
                for part in route(document, path, method, operation)
            ),
            *schemas(document),
            "</body>\n</html>\n",
        ]
    )


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def calling(document: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How to call</h2>"
    yield "<p>In the commands below, <code>$URL</code> is the address of this page without <code>/docs</code>.</p>"
    schemes = document["components"].get("securitySchemes", {})
    if not schemes:
        yield "<p>This server asks for no key.</p>"
    for scheme in schemes.values():
        yield (
            f"<p>Where a key is asked for, send the header <code>Authorization: {escape(scheme['scheme'].title())} KEY"
            f"</code>. {prose(scheme.get('description', ''))} In the commands it is <code>$KEY</code>.</p>"
        )


def contents(document: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Routes</h2>"
    for tag in document["tags"]:
        entries = [
            (operation["operationId"], method, path, operation["summary"])
            for path, method, operation in operations(document)
            if tag["name"] in operation["tags"]
        ]
        yield f"<p>{prose(tag['description'])}</p>"
        yield from table(
            (),
            (
                (f'<a href="#{escape(name)}">{escape(f"{method} {path}")}</a>', prose(summary))
                for name, method, path, summary in entries
            ),
        )


def route(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<section id="{escape(operation["operationId"])}">'
    yield f'<h2><span class="method">{escape(method)}</span> <code>{escape(path)}</code></h2>'
    yield f"<p>{prose(operation['summary'])} {prose(operation.get('description', ''))}</p>"
    if operation.get("parameters"):
        yield "<h3>Headers of the request</h3>"
        yield from table(("Header", "Values", "Meaning"), map(parameter_row, operation["parameters"]))
    yield "<h3>Request</h3>"
    bodies = examples(document, operation.get("requestBody", {}))
    for summary, value in bodies:
        yield details(summary, pre(pretty(value)) + pre(command(path, method, operation, json.dumps(value))))
    if not bodies:
        yield pre(command(path, method, operation))
    yield "<h3>Answer</h3>"
    answers = {status: resolved(document, answer) for status, answer in operation["responses"].items()}
    for status, answer in answers.items():
        for summary, value in examples(document, answer):
            yield details(f"{status}: {summary}", pre(value if isinstance(value, str) else pretty(value)))
    yield from table(
        ("Status", "Meaning", "Content", "Headers"), (status_row(status, answer) for status, answer in answers.items())
    )
    yield "</section>"


def parameter_row(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    values = parameter["schema"].get("enum", (parameter["schema"]["type"],))
    return code(parameter["name"]), ", ".join(map(code, values)), prose(parameter["description"])


def status_row(status: str, answer: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return (
        escape(status),
        prose(answer["description"]),
        "<br>".join(map(code, answer.get("content", {}))),
        " ".join(map(code, answer.get("headers", {}))),
    )


def schemas(document: Mapping[str, Any]) -> Iterator[str]:
    yield '<section id="schemas"><h2>Schemas</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield details(name, pre(pretty(schema)))
    yield "</section>"


def examples(document: Mapping[str, Any], message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Summary and value of each example of a body."""
    found = []
    for media_type, media in message.get("content", {}).items():
        if "example" in media:
            found.append((media_type, media["example"]))
        for reference in media.get("examples", {}).values():
            example = resolved(document, reference)
            found.append((example["summary"], example["value"]))
    return found


def resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference leads to, or the node itself if it is none."""
    if "$ref" not in node:
        return node
    found: Any = document
    for key in node["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return resolved(document, found)


def command(path: str, method: str, operation: Mapping[str, Any], body: str | None = None) -> str:
    """The same with curl, in the words of a POSIX shell."""
    lines = [f'curl "$URL{path}"' if method == "GET" else f'curl -X {method} "$URL{path}"']
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $KEY"')
    if body is not None:
        lines += ["-H 'Content-Type: application/json'", f"--data {shlex.quote(body)}"]
    return " \\\n  ".join(lines)


def pretty(value: Any) -> str:
    return json.dumps(shortened(value), indent=2, ensure_ascii=False)


def shortened(value: Any) -> Any:
    """The same with long lists of numbers cut."""
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > LONG and isinstance(value[0], float):
        return [*value[:SHOWN_NUMBERS], f"… {len(value) - SHOWN_NUMBERS} more numbers"]
    return [shortened(part) for part in value]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Of cells that are HTML already."""
    yield "<table>"
    if cells := "".join(f"<th>{cell}</th>" for cell in head):
        yield f"<tr>{cells}</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def prose(text: str) -> str:
    """Text whose `words between backticks` are code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
