"""The conda recipe and environment ask for what pyproject.toml asks for; pages name its extras."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_documentation import PAGES

ROOT = Path(__file__).parent.parent
CONDA = ROOT / "packaging" / "conda"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # where conda-forge's name is another


def wanted():
    """What a package of conda has to ask for."""
    found = [f"python {PROJECT['requires-python']}"]
    for line in PROJECT["dependencies"]:
        name, versions = re.fullmatch(r"([\w-]+)(\S*)", line).groups()
        found.append(f"{NAMES.get(name, name)} {versions}")
    return sorted(found)


@pytest.fixture
def recipe():
    """The recipe, its expressions put in as rattler-build does it."""
    (lowest,) = yaml.safe_load((CONDA / "variants.yaml").read_text(encoding="utf-8"))["python_min"]
    text = (CONDA / "recipe.yaml").read_text(encoding="utf-8")
    known = {**yaml.safe_load(re.sub(r"\$\{\{.*?\}\}", "later", text))["context"], "python_min": lowest}
    return yaml.safe_load(re.sub(r"\$\{\{ (\w+) \}\}", lambda found: str(known[found[1]]), text))


def test_the_recipe_is_of_this_version_and_asks_for_what_the_project_asks_for(recipe):
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    assert sorted(recipe["requirements"]["run"]) == wanted()
    scripts = [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    about = recipe["about"]
    assert (about["summary"], about["license"]) == (PROJECT["description"], PROJECT["license"])
    assert (ROOT / about["license_file"]).is_file() and (CONDA / recipe["source"]["path"]).samefile(ROOT)


def test_the_environment_asks_for_the_same():
    environment = yaml.safe_load((CONDA / "environment.yml").read_text(encoding="utf-8"))
    *from_conda, by_pip = environment["dependencies"]
    assert by_pip["pip"][-1] == "../.." and (CONDA / "../..").samefile(ROOT)
    asked = [name for name in (*from_conda, *by_pip["pip"]) if name not in ("pip", "../..")]
    assert sorted(asked) == wanted()


def test_the_page_on_installing_has_the_extras_that_there_are():
    extras = PROJECT["optional-dependencies"]
    offered = extras.keys() - {"dev", "docs", "peers"}  # which are for who changes the project
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", page, flags=re.MULTILINE))
    assert sorted(name for cell in table for name in re.findall(r"`(\w+)`", cell)) == sorted(offered)
    (whole,) = extras["all"]
    left_out = offered - {"all"} - set(re.fullmatch(r"blackbox-coupling\[(.*)\]", whole)[1].split(","))
    assert set(re.findall(r"`(\w+)`", table["`all`"])) == left_out


def test_no_page_names_an_extra_that_is_not_there():
    places = [*PAGES, *(path for path in (ROOT / "examples").rglob("*.*") if path.suffix in (".md", ".py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in places)
    named = set(",".join(re.findall(r"(?:coupling|'\.)\[([\w,]+)\]", text)).split(","))
    assert {"onnx", "fmu", "sumo"} <= named <= PROJECT["optional-dependencies"].keys()
