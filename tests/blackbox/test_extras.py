import sys

import pytest

from blackbox import BlackBoxError
from blackbox.extras import MissingExtraError, import_extra


def test_what_is_installed_is_imported():
    assert import_extra("Box", "json.decoder", "reading") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_what_is_missing_is_named_with_the_command_that_installs_it(module):
    with pytest.raises(MissingExtraError) as caught:
        import_extra("Box", module, "reading")
    assert str(caught.value) == (
        "Box: expected the package 'no_such_package', which is optional, and found it not installed. "
        "Install it with: pip install 'blackbox-coupling[reading]'"
    )
    assert isinstance(caught.value, BlackBoxError) and isinstance(caught.value, ImportError)


def test_an_installed_package_that_lacks_another_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        import_extra("Box", "half_there", "reading")
    assert not isinstance(caught.value, MissingExtraError)
