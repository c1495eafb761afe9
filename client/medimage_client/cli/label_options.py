"""Options of the commands that predict labels or know the true ones."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from medimage_client.labels.predictions import read_columns, read_names
from medimage_client.labels.scores import DEFAULT_SAMPLES

F = TypeVar("F", bound=Callable[..., Any])


def label_options(command: F) -> F:
    """The options --label, --labels and --template; the command gets `prompts`, the texts of each label.

    A command with an option --head, its argument `heads`, needs no labels where that is given.
    """

    @click.option("--label", "labels", multiple=True, help="A label; may be repeated.")
    @click.option(
        "--labels",
        "labels_file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="File of labels, one per line, added after those of --label; or .csv with the columns label and prompt, "
        "where a label may have several rows.",
    )
    @click.option(
        "--template",
        "templates",
        multiple=True,
        default=["{}"],
        show_default=True,
        help="Text around each label, which replaces {}; may be repeated. The prompts of a label are averaged.",
    )
    @wraps(command)
    def with_prompts(
        *args: Any, labels: tuple[str, ...], labels_file: Path | None, templates: tuple[str, ...], **options: Any
    ) -> Any:
        if options.get("heads"):
            if labels or labels_file or templates != ("{}",):
                raise click.UsageError("--label, --labels and --template are not for --head, which has its own labels")
            return command(*args, prompts={}, **options)
        return command(*args, prompts=read_label_texts(labels, labels_file, templates), **options)

    return cast(F, with_prompts)


def truth_option(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "--truth",
        required=required,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Table .csv or .parquet with the columns id and label."
        + ("" if required else " Print scores instead of probabilities, as `medimage evaluate classification` does."),
    )


def bootstrap_option(command: F) -> F:
    return click.option(
        "--bootstrap",
        "samples",
        type=click.IntRange(min=0),
        default=DEFAULT_SAMPLES,
        show_default=True,
        help="Samples of the bootstrap that the 95 % intervals of scores are from; 0 for no intervals.",
    )(command)


def read_label_texts(labels: Sequence[str], path: Path | None, templates: Sequence[str]) -> dict[str, list[str]]:
    """The prompts of each label: its texts in each of the templates. A label alone is its own text."""
    if any("{}" not in template for template in templates):
        raise click.BadParameter("has no {}, the place of the label", param_hint="--template")
    texts: dict[str, list[str]] = {}
    for label, text in [*((label, label) for label in labels), *read_labels(path)]:
        texts.setdefault(label, []).append(text)
    if not texts:
        raise click.UsageError("no labels; give --label or --labels")
    return {
        label: [template.replace("{}", text) for template in templates for text in of_label]
        for label, of_label in texts.items()
    }


def read_labels(path: Path | None) -> list[tuple[str, str]]:
    """Labels with a text of each, by the lines of a file."""
    if path is None:
        return []
    if path.suffix == ".csv":
        columns = read_columns(path, needed=["label", "prompt"])
        return [*zip(*(read_names(path, columns, name) for name in ("label", "prompt")), strict=True)]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8 text", param_hint="--labels") from error
    return [(line.strip(), line.strip()) for line in lines if line.strip()]
