"""Import every submodule of a package, and prove that the workspace is out of reach.

python import_all.py MODULE STRANGER...

The strangers are packages of the workspace that MODULE does not declare: were one importable,
the environment would prove nothing.
"""

import importlib
import importlib.util
import pkgutil
import sys
from importlib.metadata import version


def main() -> None:
    """See the module."""
    name, *strangers = sys.argv[1:]
    package = importlib.import_module(name)
    assert "site-packages" in (package.__file__ or ""), f"{name} is not installed from a wheel"
    modules = [info.name for info in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for module in modules:
        importlib.import_module(module)
    importable = [stranger for stranger in strangers if importlib.util.find_spec(stranger)]
    assert not importable, f"the environment is not clean: {importable}"
    distribution = name.replace("_", "-")
    print(f"{distribution} {version(distribution)}: {len(modules)} modules imported alone")


main()
