"""Unpacks the package beside its zip file and compiles it; older unpacked ones are removed.

Takes the zip file, the directory to make, and the link that is to name it. The directory appears
complete and last, so a run that was interrupted is simply done again.
"""

import compileall
import shutil
import sys
import zipfile
from pathlib import Path


def main(bundle: Path, target: Path, link: Path) -> None:
    fresh = target.with_name("unpacking")
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(fresh)
    if not compileall.compile_dir(fresh, quiet=1):
        sys.exit(f"{bundle}: does not compile with Python {sys.version.split()[0]}")
    for old in target.parent.glob("lib-*"):
        shutil.rmtree(old)
    fresh_link = link.with_name("linking")
    fresh_link.unlink(missing_ok=True)
    fresh_link.symlink_to(target.name)
    fresh_link.replace(link)
    fresh.rename(target)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
