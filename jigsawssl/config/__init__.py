"""Configuration: typed schemas hold every default; a YAML file and then ``key=value`` arguments override them."""

from .loading import config_of, describe_keys, load_config, to_yaml, without_folder, without_folders
from .repeat import command_to_repeat, command_with_file
from .schemas import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    SupervisedConfig,
    TransferConfig,
)
from .shipped import shipped_configs, summary_of

__all__ = [
    "BenchConfig",
    "CurveConfig",
    "DemoConfig",
    "DoctorConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "ReportConfig",
    "StudyConfig",
    "SupervisedConfig",
    "TransferConfig",
    "command_to_repeat",
    "command_with_file",
    "config_of",
    "describe_keys",
    "load_config",
    "shipped_configs",
    "summary_of",
    "to_yaml",
    "without_folder",
    "without_folders",
]
