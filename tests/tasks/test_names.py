import sys

import pytest

from tasks.command import cli
from tasks.configuration import names
from tasks.errors import ConfigurationError
from tasks.problem import problems

MADE_WITH = {"wake-flow": {"width": 8}}
NEED_A_FILE_OR_SERVER = {"onnx", "um-bridge"}


def install(folder, package, version, *entries, group="blackbox.functions"):
    """What pip leaves of a package that declares entry points."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(entries) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(set(names.FUNCTIONS) - NEED_A_FILE_OR_SERVER))
def test_every_name_that_ships_makes_its_black_box(name):
    from blackbox.registry import make

    box = make(name, MADE_WITH.get(name, {}), names.functions())
    module, _, kind = names.FUNCTIONS[name][0].partition(":")
    assert (type(box).__module__.startswith(module), type(box).__name__) == (True, kind)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", sorted(names.PROBLEMS))
def test_a_problem_that_ships_puts_nothing_on_the_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sys.path[:], sys.meta_path[:]
    problems.find(name)
    assert (sys.path, sys.meta_path) == before


@pytest.mark.parametrize("name", sorted(NEED_A_FILE_OR_SERVER))
def test_adapters_ask_for_what_they_need(name):
    from blackbox.registry import make

    with pytest.raises(ConfigurationError, match=f"{name}: expected a value for (path|url), got none"):
        make(name, {}, names.functions())


@pytest.mark.parametrize("name", sorted(names.PROBLEMS))
def test_a_problem_s_line_is_as_its_class_says_it(name):
    shown = [line.split(maxsplit=1) for line in names.listing().splitlines()]
    first = problems.find(names.PROBLEMS[name])[0].about().partition(". ")[0].rstrip(".")
    assert [name, f"{first}."] in shown


def test_every_line_is_one_sentence_and_fits_a_terminal():
    lines = [line for _, line in names.FUNCTIONS.values()]
    assert all(line.endswith(".") and "\n" not in line for line in lines)
    assert max(map(len, names.listing().splitlines())) <= 100


def test_packages_add_names_without_being_imported(site):
    install(site, "pumps", "1.2", "pump = no_such_module.pump:Pump", "other = b:C")
    install(site, "tuning", "3", "tune = tuning.pump:Tune", group="blackbox.tasks")
    (site / "tuning").mkdir()
    (site / "tuning" / "__init__.py").write_text("raise SystemExit('imported')")
    assert names.functions()["pump"] == "no_such_module.pump:Pump"
    assert names.problems() == names.PROBLEMS | {"tune": "tuning.pump:Tune"}
    lines = names.listing().splitlines()
    assert any(
        line.split() == ["pump", "no_such_module.pump:Pump,", "from", "pumps", "1.2"] for line in lines
    )
    assert any(line.split() == ["tune", "tuning.pump:Tune,", "from", "tuning", "3"] for line in lines)


def test_nobody_takes_over_a_name_that_ships(site, monkeypatch):
    install(site, "cuckoo", "1", "wake-flow = cuckoo:Egg")
    install(site, "egg", "1", "toy = cuckoo.task:Egg", group="blackbox.tasks")
    monkeypatch.setitem(names.PROBLEMS, "toy", "toy:Toy")
    assert names.functions()["wake-flow"] == "simulators.wake_flow:WakeFlow"
    assert names.problems() == names.PROBLEMS
    names.check_single("wake-flow")


def test_a_name_that_two_packages_want_is_refused_when_it_is_used_and_only_then(site):
    install(site, "one", "1", "pump = one:Pump")
    install(site, "two", "2", "pump = two:Pump", "fan = two:Fan")
    assert "pump" not in names.functions() and names.functions()["fan"] == "two:Fan"
    assert "one:Pump, from one 1; two:Pump, from two 2\n" in names.listing()
    names.check_single("fan")
    with pytest.raises(ConfigurationError, match=r"pump: Two packages want this name.*as module:Class"):
        names.check_single("pump")
    install(site, "three", "3", "pump = three:Tune", group="blackbox.tasks")
    install(site, "four", "4", "pump = four:Tune", group="blackbox.tasks")
    with pytest.raises(
        ConfigurationError, match=r"pump: Two packages want this name: four:Tune, from four 4;"
    ):
        problems.find("pump")


def test_a_package_that_is_on_the_path_twice_is_one(site, monkeypatch):
    for folder in ("a", "b"):
        install(site / folder, "one", "1", "pump = one:Pump")
        monkeypatch.setattr(sys, "path", [str(site / folder), *sys.path])
    assert names.functions()["pump"] == "one:Pump"


def test_what_is_installed_is_listed_with_the_machine():
    from tasks.command import installation

    lines = [line.split(maxsplit=1) for line in installation.report().splitlines()]
    found = dict(line for line in lines if len(line) == 2)
    import numpy

    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"] and found["numpy"] == numpy.__version__


def test_a_problem_whose_module_is_not_there_is_named(site, capsys):
    from tasks.command import cli

    install(site, "tuning", "3", "tune = no_such_tuning:Tune", group="blackbox.tasks")
    assert cli.main(["run", "tune"]) == 2
    assert "no_such_tuning: expected a module that is installed" in capsys.readouterr().err


def test_what_a_problems_module_misses_itself_is_not_blamed_on_it(site, capsys):
    from tasks.command import cli

    install(site, "hungry", "1", "eat = hungry:Eat", group="blackbox.tasks")
    (site / "hungry.py").write_text("import no_such_dependency")
    assert cli.main(["run", "eat"]) == 1
    said = capsys.readouterr().err.splitlines()[0]
    assert "hungry.py, line 1: your code raised ModuleNotFoundError: No module named 'no_such_dep" in said


@pytest.mark.parametrize("command", ["run", "check", "resume", "report"])
def test_a_name_of_thousands_of_characters_is_not_repeated(command, capsys):
    assert cli.main([command, "x" * 5000]) in (1, 2)
    said = capsys.readouterr().err
    assert "xxx...xxx" in said and len(said) < 1000
