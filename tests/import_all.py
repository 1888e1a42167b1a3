"""A package alone, in an environment that holds nothing but what it declares.

python import_all.py MODULE FOREIGN...

Imports every submodule, proves that the workspace is out of reach (the foreign packages are members
that MODULE does not declare), and runs the README's example as it stands in the wheel.
"""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import tempfile
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
    example = "".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    printed = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    if example:
        command = [sys.executable, "-W", "error", "-c", example]
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert not printed or printed == [done.stdout], done.stdout
    print(f"{distribution} {version(distribution)}: {len(modules)} modules imported alone")


main()
