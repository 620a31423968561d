"""What the user may have meant by a key that a command does not have."""

import difflib

from .keys import keys_of
from .schemas import COMMANDS

SCHEMAS = tuple(command.schema for command in COMMANDS.values())

_ELSEWHERE = {
    "trainer.max_epochs": "epochs epoch n_epochs num_epochs max_epochs num_train_epochs passes",
    "optimizer.lr": "lr learning_rate base_lr rate",
    "optimizer.weight_decay": "wd weight_decay",
    "optimizer.name": "optimizer optim opt",
    "optimizer.warmup": "warmup warmup_epochs",
    "batch.size": "batch_size batch bs batchsize",
    "batch.workers": "num_workers workers n_workers threads",
    "views.size": "image_size img_size imgsz size resolution input_size crop_size views",
    "views.grids": "grid grids patches tiles",
    "views.preset": "augment augmentation augmentations aug transform transforms",
    "trainer.devices": "gpus n_gpus num_gpus devices",
    "trainer.accelerator": "device accelerator cuda gpu gpus devices",
    "precision": "amp fp16 bf16 mixed_precision dtype",
    "backbone": "model model_name arch architecture network net",
    "encoder": "model weights checkpoint ckpt pretrained init model_path backbone arch architecture network net",
    "encoders": "encoder model models weights checkpoint checkpoints backbone",
    "manifest": "labels label csv annotations labels_csv csv_file label_file metadata table",
    "data": "input input_dir images image_dir dir path root folder data_dir data_path dataset archive source src",
    "out": "output output_dir out_dir outdir save_dir save_path results results_dir run_dir log_dir logdir work_dir",
    "run": "out data dir path folder output",
    "fraction": "fractions label_fraction percent share",
    "fractions": "fraction label_fraction percent share",
    "seed": "seeds random_seed random_state manual_seed",
    "seeds": "seed repeats repetitions n_seeds draws",
    "trials": "n_trials",
    "jobs": "n_jobs processes parallel",
    "overwrite": "force",
    "resume": "continue resume_from",
    "config": "cfg config_file yaml",
    "train": "freeze freeze_backbone frozen unfreeze",
}
"""Words for a key that are usual in other programs; where a word is given twice, the first key that a command has."""


def command_of(schema: type) -> str:
    """The command that a schema belongs to.

    >>> from jigsawssl.config.schemas import FinetuneConfig, PretrainConfig
    >>> command_of(PretrainConfig)
    'pretrain'
    """
    return next(name for name, command in COMMANDS.items() if command.schema is schema)


def is_misspelt(key: str, schema: type) -> bool:
    """Whether a key nearly is one of a schema, or is one.

    >>> from jigsawssl.config.schemas import FinetuneConfig, PretrainConfig
    >>> is_misspelt("fractions", FinetuneConfig), is_misspelt("mode", PretrainConfig)
    (True, False)
    """
    return bool(difflib.get_close_matches(str(key), keys_of(schema), n=1, cutoff=0.8))


def meant(word: str, schema: type) -> str | None:
    """The key of a schema that a word stands for, itself included; None where that would be a guess.

    >>> from jigsawssl.config.schemas import FinetuneConfig, PretrainConfig
    >>> meant("epochs", PretrainConfig), meant("batch-size", PretrainConfig), meant("model", FinetuneConfig)
    ('trainer.max_epochs', 'batch.size', 'encoder')
    """
    known = keys_of(schema)
    word = word.lower().replace("-", "_")
    if word in known:
        return word
    usual = [key for key, words in _ELSEWHERE.items() if key in known and word in words.split()]
    if usual:
        return usual[0]
    if _inside(word, schema):
        return None
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    same = ends.get(word.rpartition(".")[2], [])
    if len(same) == 1:
        return same[0]
    near = difflib.get_close_matches(word, [*known, *ends], n=1, cutoff=0.8)
    return near[0] if near and near[0] in known else ends[near[0]][0] if near else None


def _guessed(word: str, schema: type) -> str | None:
    """The key whose name, or a word for it, is nearest."""
    known = keys_of(schema)
    others = {other: key for key, words in _ELSEWHERE.items() if key in known for other in words.split()}
    near = difflib.get_close_matches(word, others, n=1, cutoff=0.8)
    if near:
        return others[near[0]]
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def unknown_key(key: str, schema: type) -> str:
    """What to say of a key that a command does not have.

    >>> from jigsawssl.config.schemas import FinetuneConfig, PretrainConfig
    >>> unknown_key("fraction", PretrainConfig)
    'pretrain has no key `fraction`; finetune and study do; `--help` lists the keys'
    """
    command = command_of(schema)
    found = meant(key, schema)
    if found is not None:
        return f"{command} has no key `{key}`; did you mean `{found}`?"
    inside = _inside(key, schema)
    if inside:
        return f"`{key}` is a group of keys; give one of {', '.join(inside)}"
    others = [command_of(other) for other in SCHEMAS if other is not schema and key in keys_of(other)]
    if others:
        do = "does" if len(others) == 1 else "do"
        return f"{command} has no key `{key}`; {_and(others)} {do}; `--help` lists the keys"
    guess = meant(key.rpartition(".")[2], schema) or _guessed(key, schema)
    hint = f"did you mean `{guess}`?" if guess is not None else "`--help` lists the keys"
    return f"{command} has no key `{key}`; {hint}"


def _inside(group: str, schema: type) -> list[str]:
    """The keys of a group."""
    return [key for key in keys_of(schema) if key.startswith(f"{group}.")]


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
