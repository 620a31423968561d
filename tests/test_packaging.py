"""What is installed: every package, and the configurations and templates, which are no Python files."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_package_is_listed_and_the_configurations_are_one() -> None:
    options = setup()["options"]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "jigsawssl").rglob("__init__.py")}
    assert sorted(lines(options["packages"])) == sorted({*found, "jigsawssl.configs"})
    places = dict(line.split(" = ") for line in lines(options["package_dir"]))
    assert places == {"jigsawssl": "jigsawssl", "jigsawssl.configs": "configs"}


def test_every_file_that_is_no_python_is_installed() -> None:
    places = {"jigsawssl": ROOT / "jigsawssl", "jigsawssl.configs": ROOT / "configs"}
    data = setup()["options.package_data"]
    installed = {file for name in data for pattern in lines(data[name]) for file in places[name].glob(pattern)}
    ours = {file for place in places.values() for file in place.rglob("*") if file.is_file()}
    assert installed == {file for file in ours if file.suffix not in (".py", ".pyc")}


def test_the_addresses_of_the_project_are_those_of_the_papers() -> None:
    urls = dict(line.split(" = ") for line in lines(setup()["metadata"]["project_urls"]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(url.startswith("https://arxiv.org/abs/") for url in urls.values())
    assert "Park & Ryu" in readme and "Zbontar et al. 2021" in readme and len(urls) == 2
