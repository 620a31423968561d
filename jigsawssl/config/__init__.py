"""Configuration: typed schemas hold every default; a YAML file and then ``key=value`` arguments override them."""

from .groups import check_grids
from .loading import config_of, describe_keys, load_config, to_yaml, without_folder, without_folders
from .repeat import command_line, command_to_repeat, command_with, command_with_file, settings_of
from .schemas import (
    COMMANDS,
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
from .shipped import configs_of, shipped_configs, summary_of
from .suggest import command_of

__all__ = [
    "COMMANDS",
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
    "check_grids",
    "command_line",
    "command_of",
    "command_to_repeat",
    "command_with",
    "command_with_file",
    "config_of",
    "configs_of",
    "describe_keys",
    "load_config",
    "settings_of",
    "shipped_configs",
    "summary_of",
    "to_yaml",
    "without_folder",
    "without_folders",
]
