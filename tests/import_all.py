"""A package alone, in an environment that holds nothing but what it declares.

python import_all.py MODULE FOREIGN...

Imports every submodule, proves that the workspace is out of reach (the foreign packages are members
that MODULE does not declare), and runs the README's example as it stands in the wheel.
"""

import importlib
import importlib.util
import io
import pkgutil
import re
import sys
from contextlib import redirect_stdout
from importlib.metadata import metadata, version


def main() -> None:
    """See the module."""
    name, *foreign = sys.argv[1:]
    package = importlib.import_module(name)
    assert "torch" not in sys.modules, f"import {name} brings torch in, which takes seconds"
    assert "site-packages" in (package.__file__ or ""), f"{name} is not installed from a wheel"
    modules = [info.name for info in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for module in modules:
        importlib.import_module(module)
    importable = [module for module in foreign if importlib.util.find_spec(module)]
    assert not importable, f"the environment is not clean: {importable}"
    distribution = name.replace("_", "-")
    readme = str(metadata(distribution).get_payload())  # type: ignore[attr-defined] # a message
    code, expected = (
        re.findall(rf"```{kind}\n(.*?)```", readme, re.S) for kind in ("python", "text")
    )
    if code:
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(code[0], f"{distribution}/README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own page
        assert expected[:1] == [said.getvalue()] or not expected, said.getvalue()
    print(f"{distribution} {version(distribution)}: {len(modules)} modules imported alone")


main()
