"""Configuration: typed schemas hold every default; a YAML file and then ``key=value`` arguments override them."""

from .loading import describe_keys, load_config, to_yaml, without_folder, without_folders
from .schemas import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    SupervisedConfig,
)

__all__ = [
    "BenchConfig",
    "CurveConfig",
    "DemoConfig",
    "DoctorConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "ReportConfig",
    "SupervisedConfig",
    "describe_keys",
    "load_config",
    "to_yaml",
    "without_folder",
    "without_folders",
]
