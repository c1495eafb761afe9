"""`medimage finetune`: MedImageInsight, trained on one's own images and texts."""

from pathlib import Path

import click

from medimage_client.errors import InvalidInput


def read_inputs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    from medimage_training.config import FILES

    found = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or name not in FILES:
            raise click.BadParameter(f"{value!r} is not NAME=PATH with a NAME of {', '.join(FILES)}")
        found[name] = Path(path)
    return found


@click.command()
@click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="train.yaml, with the keys of Microsoft's fine-tuning. Its relative paths start at its folder.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=PATH",
    callback=read_inputs,
    help="A file of INPUTS, by its name there, which is that of the Azure pipeline: image_tsv, text_tsv, label_file, "
    "eval_image_tsv, …; may be repeated.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder to write, instead of SAVE_DIR."
)
@click.option("--resume", is_flag=True, help="Go on from the last saved state, if there is one, as RESUME: true.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about an image that cannot be read. Its row is named either way.",
)
def finetune(config: Path, inputs: dict[str, Path], output: Path | None, resume: bool, on_bad_image: str) -> None:
    """Fine-tune MedImageInsight on your own images and texts.

    Writes best/ and last/, which `medimage export` takes, classifier/, log.csv and a report of the scores before and
    after. On several GPUs: torchrun --nproc-per-node 4 -m medimage_training --config train.yaml
    """
    from medimage_export.errors import ExportError
    from medimage_training.config import read_fine_tuning
    from medimage_training.trainer import fine_tune

    options = read_fine_tuning(config, inputs=inputs, output=output, resume=resume)
    try:
        lines = fine_tune(options, skip_bad_images=on_bad_image == "skip", say=lambda line: click.echo(line, err=True))
    except (ExportError, InvalidInput, OSError) as error:
        raise click.ClickException(str(error)) from error
    if lines:
        click.echo("\n".join(lines))
