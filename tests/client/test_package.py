"""What the package offers and what importing it costs."""

import subprocess
import sys

import medimage_client


def test_exported_names_are_sorted_and_exist():
    assert medimage_client.__all__ == sorted(medimage_client.__all__)
    assert all(hasattr(medimage_client, name) for name in medimage_client.__all__)


def test_import_needs_no_extra_and_loads_no_wire():
    blocked = (
        "click",
        "highdicom",
        "pydicom",
        "dicomweb_client",
        "requests",
        "nibabel",
        "pyarrow",
        "rouge_score",
        "sacrebleu",
        "torch",
        "onnxruntime",
    )
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import medimage_client\n"
    program += "print({'grpc', 'aiohttp'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


def test_every_exception_is_in_the_tree_of_the_docstring():
    from medimage_client import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, errors.MedImageError) for error in classes)
    assert all(error.__name__ in errors.__doc__ for error in classes)


def test_constants_of_the_client_are_had_without_its_clients():
    """Each process of Triton's Python models reads some, and is started again after each hostile image."""
    program = (
        "import sys, medimage_client, medimage_client.constants\n"
        "print([name for name in ('asyncio', 'ssl', 'numpy', 'medimage_client.wire') if name in sys.modules])\n"
        "print([name for name in medimage_client.__all__ if name not in dir(medimage_client)])\n"
        "print([name for name in medimage_client.__all__ if not hasattr(medimage_client, name)])\n"
        "print(hasattr(medimage_client, 'Triton'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["[]", "[]", "[]", "False"]
