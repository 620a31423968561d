"""A first check of what the settings name, before the seconds that importing PyTorch takes; nothing here writes."""

import dataclasses
import difflib
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..config import schemas
from ..config.groups import check_grids
from ..config.keys import keys_of
from ..config.loading import config_of, to_yaml
from ..config.suggest import command_of
from ..data.archive import open_archive
from ..data.manifest import csv_rows, manifest_columns
from ..data.walk import IMAGE_SUFFIXES
from ..header import find_encoder, read_header
from ..runs.folder import check_entries, check_place, check_run_folder
from ..types import UserError

Config = TypeVar("Config")
Pretraining = TypeVar("Pretraining", bound=schemas.PretrainConfig)

_FEW = 100
"""Rows of a manifest whose files are looked for; where one is missing, the whole of it is opened."""

_MANY = 1000
"""Files of a folder among which an image is looked for."""

_ROWS = 20_000
"""Rows of a manifest that are looked at: a fifth of a second."""

_DOCTOR_WRITES = frozenset({"cache", "doctor.json", "sheets", "table.parquet"})

_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EIO)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def look(config: Config) -> Config:
    """Refuse what can cheaply be seen to fail; the command checks the rest.

    Args:
        config: of any command.

    Returns:
        The configuration, with the file in place of the folder wherever that of a run is given as an encoder.

    Raises:
        UserError: for a place that cannot be written to, and for an archive, a manifest, an encoder or a list of labels
            that is not there or cannot be used.
    """
    if isinstance(config, schemas.ReportConfig):
        _misspelt("run", config.run)
        if not any((Path(config.run) / name).is_file() for name in ("report.json", "task.json")):
            raise UserError(
                f"`run` ({config.run}) must be the folder of a finished run, a curve or a study; no report.json is "
                "there; check the path"
            )
        check_place(config.run, key="run")
    if isinstance(
        config, (schemas.PretrainConfig, schemas.SelectConfig, schemas.SupervisedConfig, schemas.DoctorConfig)
    ):
        named = (config.data, config.manifest, config.layout)
        _look_at_archive(
            *named,
            needs=isinstance(config, schemas.SupervisedConfig),
            reads=not isinstance(config, (schemas.PretrainConfig, schemas.SelectConfig)),
        )
    if isinstance(config, schemas.SupervisedConfig) and config.subgroups:
        manifest_columns(config.manifest, config.subgroups)
    found: dict[str, Any] = {}
    if (
        isinstance(config, (schemas.PretrainConfig, schemas.SelectConfig, schemas.FinetuneConfig))
        and config.encoder is not None
    ):
        found["encoder"] = _look_at_encoder(config.encoder)
    if isinstance(config, schemas.FinetuneConfig) and config.subset is not None:
        _misspelt("subset", config.subset)
        csv_rows(Path(config.subset), key="subset", most=_ROWS)
    if isinstance(config, schemas.SelectConfig) and config.labelled is not None:
        _misspelt("labelled", config.labelled)
        csv_rows(Path(config.labelled), key="labelled", labels=True, most=_ROWS)
    if isinstance(config, schemas.CurveConfig):
        every = config.encoders.items()
        found["encoders"] = {name: _look_at_encoder(given, f"encoders.{name}") for name, given in every}
        if config.subsets is not None and not any(Path(config.subsets).glob("fraction-*.csv")):
            raise UserError(
                f"`subsets` ({config.subsets}) must be the folder subsets/ of another curve; it holds no "
                "fraction-*.csv; check the path"
            )
    if isinstance(config, schemas.StudyConfig):
        found["variants"] = {name: _look_at_variant(name, values) for name, values in config.variants.items()}
        for name, values in config.domains.items():
            with _within(f"`domains.{name}`"):
                _look_at_archive(values["data"], values.get("manifest"), values.get("layout"), needs=True, reads=True)
    if isinstance(config, schemas.TransferConfig):
        found["stages"] = [_look_at_stage(dict(stage), number) for number, stage in enumerate(config.stages)]
    config = dataclasses.replace(config, **found)  # type: ignore[type-var]
    if isinstance(config, schemas.PretrainConfig):
        config = settled(config)
    _look_at_out(config)
    return config


_FORMAT = {
    key: (key.rpartition(".")[2], entry.metadata["fallback"])
    for key, (entry, _) in keys_of(schemas.PretrainConfig).items()
    if entry.metadata["fallback"] is not None
}
"""Keys about the format of images: their name in an encoder's file, and what null means without one."""


def settled(config: Pretraining) -> Pretraining:
    """Every key about the format of images with a value: the one given, else the encoder's, else the default.

    Raises:
        UserError: if the size does not go with the grids.
    """
    known = _format_of(config.encoder)
    views, reading = dataclasses.replace(config.views), dataclasses.replace(config.reading)
    for key, (name, default) in _FORMAT.items():
        group = views if key.startswith("views.") else reading
        if getattr(group, name) is None:
            setattr(group, name, known.get(name, default))
    check_grids(views.size, views.grids)
    return dataclasses.replace(config, views=views, reading=reading)


def format_changes(config: schemas.PretrainConfig) -> list[tuple[str, Any, Any]]:
    """Where a settled configuration differs from the encoder that it goes on from: key, value, the encoder's value."""
    known = _format_of(config.encoder)
    now = {"size": config.views.size, **vars(config.reading)}
    return [
        (key, now[name], known[name]) for key, (name, _) in _FORMAT.items() if known.get(name, now[name]) != now[name]
    ]


def _format_of(reference: str | None) -> dict[str, Any]:
    """What one of our files says of the images that it was trained on; a damaged one is refused on loading."""
    file = Path((reference or "").removeprefix("random:"))
    if not file.is_file():
        return {}
    header = read_header(file).get("encoder")
    known = {"fit": "squash", "stain": "none", **header} if isinstance(header, dict) else {}
    return {name: known[name] for name, default in _FORMAT.values() if type(known.get(name)) is type(default)}


def _look_at_out(config: Any) -> None:
    if isinstance(config, (schemas.DoctorConfig, schemas.DemoConfig)) and config.out is not None:
        folder = check_place(config.out)
        if isinstance(config, schemas.DoctorConfig):
            check_entries(folder, _DOCTOR_WRITES, kind="doctor run")
    if isinstance(config, schemas.PretrainConfig) and config.cache not in (None, "off"):
        check_place(str(config.cache), key="cache")
    if schemas.COMMANDS[command_of(type(config))].may_change is not None and _is_first_process():
        run_folder(config)


def run_folder(
    config: schemas.PretrainConfig | schemas.SelectConfig | schemas.SupervisedConfig | schemas.TransferConfig,
) -> Path:
    """The folder of a run that may be written to; see :func:`jigsawssl.runs.folder.check_run_folder`."""
    return check_run_folder(
        config.out,
        resume=config.resume,
        overwrite=config.overwrite,
        config=to_yaml(config),
        free=schemas.COMMANDS[command_of(type(config))].may_change or (),
        also=stage_names(config) if isinstance(config, schemas.TransferConfig) else (),
    )


def stage_names(config: schemas.TransferConfig) -> list[str]:
    """Folders of the stages of a chain."""
    return [f"{number}-{stage['name']}" for number, stage in enumerate(config.stages, start=1)]


def _is_first_process() -> bool:
    """Whether this is the process that owns the folder: with several devices, the others start after it."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order
    return next((os.environ[name] for name in ranks if name in os.environ), "0") == "0"


def _look_at_archive(data: str, manifest: str | None, layout: str | None, *, needs: bool, reads: bool) -> None:
    """Open an archive only where something shows that this will fail, as it may have a million files.

    ``needs``: the command cannot do without labels; ``reads``: it looks at them.
    """
    _misspelt("data", data)
    folder = Path(data)
    if not folder.is_dir():
        if manifest is not None or layout is not None or not (data == "demo" or data.lower().endswith(".npz")):
            open_archive(data, manifest=manifest, layout=layout)
        elif data != "demo" and not folder.is_file():
            open_archive(data)
        return
    if layout is not None:
        if manifest is not None:
            open_archive(data, manifest=manifest, layout=layout)
        return
    if manifest in (None, "folders"):
        if needs and manifest is None:
            raise UserError(
                f"`data` ({data}) must have labels of at least two classes; a folder by itself has none; give "
                "manifest=labels.csv with path,label or manifest=folders"
            )
        if not _has_image(folder, below=manifest == "folders"):
            open_archive(data, manifest=manifest)
        return
    _misspelt("manifest", manifest)
    rows = csv_rows(Path(manifest), labels=reads, most=_ROWS)
    if needs and rows and "label" not in rows[0][1]:
        raise UserError(
            f"`manifest` ({manifest}) must have the columns path,label in its first line; it has: "
            f"{', '.join(rows[0][1])}; add `label`."
        )
    written = [cells["path"] for _, cells in rows[:_FEW]]
    if not written or not all(os.path.isfile(folder / path) and not os.path.isabs(path) for path in written):
        open_archive(data, manifest=manifest)


def _has_image(folder: Path, below: bool) -> bool:
    """Whether there is one by name among the first files: directly or, with ``below``, in a folder of this one."""
    files = (
        (place != str(folder), name)
        for place, _, names in os.walk(folder)
        for name in names
    )  # fmt: skip
    return any(name.lower().endswith(IMAGE_SUFFIXES) and (inner or not below) for inner, name in islice(files, _MANY))


def _look_at_encoder(reference: str, key: str = "encoder") -> str:
    """The file that is meant, with our header unless it is one of timm."""
    found = find_encoder(reference, key=key)
    kind, _, rest = found.partition(":") if found.startswith(("random:", "timm:")) else ("", "", found)
    file = rest.partition(":")[2] if kind == "timm" else rest
    if kind == "timm":
        wanted = bool(file)
    else:
        wanted = kind == "" or "/" in file or os.sep in file or file.endswith(".safetensors")
    if wanted and not Path(file).is_file():
        _misspelt(key, file)
        bare = found == file and Path(file).name == file and not file.endswith(".safetensors")
        hint = f"did you mean random:{file} or timm:{file}?" if bare else "check the path"
        raise UserError(f"`{key}` ({found}) must be a file; nothing is there; {hint}")
    if wanted and kind != "timm":
        read_header(file)
    return found


def _look_at_variant(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    with _within(f"`variants.{name}`"):
        return {**values, "encoder": _look_at_encoder(values["encoder"])}


def _look_at_stage(stage: dict[str, Any], number: int) -> dict[str, Any]:
    """A stage as the chain will run it, but for its folder and the encoder of the stage before."""
    values = {key: value for key, value in stage.items() if key not in ("name", "objective")}
    supervised = stage.get("objective", "supervised") == "supervised"
    follows = number > 0 and values.get("encoder", "previous") == "previous"
    if follows:
        values["encoder"] = "random:previous"
    with _within(f"`stages` ({number + 1}-{stage['name']})"):
        schema: Any = schemas.FinetuneConfig if supervised else schemas.PretrainConfig
        config = config_of(schema, {**values, "out": "-"})
        _look_at_archive(config.data, config.manifest, config.layout, needs=supervised, reads=supervised)
        own = config.encoder is not None and not follows
        return {**stage, "encoder": _look_at_encoder(config.encoder)} if own else stage


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Say where a mistake belongs."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _misspelt(key: str, given: str) -> None:
    """Refuse a path that is not there where one that reads like it is."""
    path = Path(given)
    line = [path, *path.parents]
    at = next((number for number, place in enumerate(line) if os.path.exists(place)), 0)
    if at == 0 or given == "demo":
        return
    try:
        with os.scandir(line[at]) as entries:
            names = [entry.name for entry in islice(entries, 2000)]
    except OSError:
        return
    word = line[at - 1].name
    # In a short name, one wrong letter is a large part of it.
    for name in difflib.get_close_matches(word, names, n=3, cutoff=0.7 if len(word) < 6 else 0.8):
        near = line[at] / name / path.relative_to(line[at - 1])
        if near.exists():
            raise UserError(f"`{key}` ({given}) must exist; did you mean {near}?")


def place_at_fault(error: OSError, config: Any) -> str | None:
    """What to tell the user where writing failed for lack of space or permission; None for any other error.

    Args:
        error: that a command let through.
        config: of that command.
    """
    said = (error.strerror or type(error).__name__).lower()
    places = {key: getattr(config, key, None) for key in ("out", "cache", "run")}
    given = {key: place for key, place in places.items() if isinstance(place, str) and place not in ("off", "-")}
    if error.errno in _FULL and given:
        key, place = next(iter(given.items()))
        return f"`{key}` ({place}) must have room; {said}; make room, or choose another folder"
    if not isinstance(error.filename, (str, os.PathLike)):
        return None
    file = Path(error.filename).absolute()
    for key, place in given.items():
        folder = Path(place).absolute()
        # As in /proc, where nothing can be made; a file that is missing from a folder that is there is our mistake.
        unmade = error.errno == errno.ENOENT and folder.is_relative_to(file) and not folder.exists()
        if unmade or (error.errno in _PLACE and file.is_relative_to(folder)):
            return f"`{key}` ({place}) must be writable; {file.name}: {said}; choose another folder"
    return None
