"""The picture of the package, kept true: a part imports only from the layers below its own."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jigsawssl"
LAYERS = [  # lowest first; a part is a module or a folder directly under the package
    ["defaults"],
    ["types"],
    ["functional", "config", "stain", "process", "progress", "words", "readers", "runs"],
    ["data", "augment", "models", "losses", "evaluation", "header"],
    ["checkpoint", "report"],
    ["training", "explain"],
    ["experiments"],
    ["cli"],
    ["__main__"],
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def imports(path: Path, package: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and absolute dotted name, split, of each import in the file: nested and TYPE_CHECKING ones too."""
    folder = [package.name, *path.parent.relative_to(package).parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else []
            module = node.module.split(".") if node.module else []
            yield from ((node.lineno, [*base, *module, alias.name]) for alias in node.names)


def violations(package: Path) -> list[str]:
    """One line for each part without a layer and for each import that does not point downwards."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package)
        part = where.parts[0].removesuffix(".py")
        if where.as_posix() == "__init__.py":  # the public names, gathered from all layers
            continue
        if part not in RANK:
            found.append(f"{where.as_posix()}: {part} has no layer")
            continue
        for line, (top, *rest) in imports(path, package):
            target = rest[0] if rest else "the package itself"
            if top == package.name:
                allowed = target in (part, "__version__") or RANK.get(target, len(LAYERS)) < RANK[part]
                allowed = allowed and part != "functional"
            else:
                allowed = part != "functional" or top == "torch" or top in sys.stdlib_module_names
            if not allowed:
                found.append(f"{where.as_posix()}:{line}: {part} imports {target if top == package.name else top}")
    return found


def test_a_part_imports_only_from_lower_layers() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("augment/jigsaw.py", "from jigsawssl.functional import to_tiles", None),
        ("augment/jigsaw.py", "from ..types import Views", None),
        ("augment/jigsaw.py", "from . import views", None),
        ("augment/fills/edge.py", "from ..views import make", None),
        ("checkpoint.py", "from jigsawssl import __version__, models", None),
        ("config.py", "from jigsawssl.types import UserError", None),
        ("__init__.py", "from .cli import main", None),
        ("cli/main.py", "from jigsawssl.experiments import curve", None),
        ("augment/jigsaw.py", "from jigsawssl.data.archive import scan", "augment imports data"),
        ("augment/jigsaw.py", "import jigsawssl.report", "augment imports report"),
        ("augment/jigsaw.py", "from .. import models", "augment imports models"),
        ("augment/fills/edge.py", "from ...models import encoder", "augment imports models"),
        ("augment/__init__.py", "from ..losses import terms", "augment imports losses"),
        ("losses.py", "from .training.pretrain import step", "losses imports training"),
        ("losses.py", "if TYPE_CHECKING:\n    from jigsawssl.cli import main", "losses imports cli"),
        ("losses.py", "def late():\n    import jigsawssl.checkpoint", "losses imports checkpoint"),
        ("losses.py", "import jigsawssl", "losses imports the package itself"),
        ("losses.py", "from jigsawssl import Views", "losses imports Views"),
        ("types.py", "from jigsawssl.config import load", "types imports config"),
        ("functional.py", "import math\nimport torch.nn\nimport numpy", "functional imports numpy"),
        ("functional.py", "from .types import Views", "functional imports types"),
        ("utils.py", "", "utils has no layer"),
        ("helpers/misc.py", "", "helpers has no layer"),
    ],
)
def test_the_check_sees(tmp_path: Path, file: str, code: str, expected: str | None) -> None:
    path = tmp_path / "jigsawssl" / file
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    found = violations(tmp_path / "jigsawssl")
    assert [line.split(": ", 1)[1] for line in found] == ([expected] if expected else [])
