#!/usr/bin/env bash
# Make a Windows Python that runs under wine: bash tests/windows/python.sh FOLDER
# Then FOLDER/python SCRIPT ARG... runs a script by it, and SIXSOCKETS_WINDOWS_PYTHON=FOLDER/python lets the tests beside
# this file do so. A signal INT arrives as Ctrl-C. At the end: FOLDER/python --end
#
# The parts: the interpreter, its libraries and compiled modules lie in a wheel for Windows on PyPI; the modules written in
# Python are those of a Python 3.11 on this machine; the program that starts the interpreter is twelve lines of C.
# It needs a Debian with apt (160 MB) and PyPI (65 MB), and takes ten seconds after that.
set -euo pipefail
folder=$(mkdir -p "${1:?name a folder}" && cd "$1" && pwd)
cd "$folder"
host=
for candidate in "$(command -v python3.11 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11.*/bin/python3; do
    [ -x "$candidate" ] && "$candidate" -c '' 2>/dev/null && host=$candidate
done
[ -n "$host" ] || { echo "there is no Python 3.11 here, whose modules it could use" >&2; exit 1; }
if ! command -v wine >/dev/null || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
    apt-get install -y -qq --no-install-recommends wine wine64 gcc-mingw-w64-x86-64-win32 >apt.log 2>&1
fi

mkdir -p wheel bin/DLLs bin/Lib
"$host" -m pip download --quiet --no-deps --only-binary=:all: --platform win_amd64 --python-version 3.11 -d wheel panda3d==1.10.16
"$host" - <<'PYTHON'
import pathlib
import zipfile

(wheel,) = pathlib.Path("wheel").glob("panda3d-*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        base = pathlib.PurePosixPath(name).name
        wanted = name.startswith("deploy_libs/") and base.endswith((".dll", ".pyd"))
        if wanted and not base.startswith(("api-ms-", "tcl", "tk", "_tkinter", "_msi", "winsound")):
            place = "bin" if base.startswith(("python3", "vcruntime")) else "bin/DLLs"
            pathlib.Path(place, base).write_bytes(archive.read(name))
PYTHON
library=$("$host" -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
tar -C "$library" -c --exclude=./site-packages --exclude=./test --exclude=./lib-dynload --exclude='./config-*' \
    --exclude=./idlelib --exclude=./tkinter --exclude=__pycache__ . | tar -C bin/Lib -x
cat >start.c <<'C'
#include <windows.h>

typedef int (*program)(int, wchar_t **);

int wmain(int count, wchar_t **words)
{
    HMODULE python = LoadLibraryW(L"python311.dll");
    if (!python)
        return 99;
    return ((program)(void *)GetProcAddress(python, "Py_Main"))(count, words);
}
C
x86_64-w64-mingw32-gcc -municode -O1 -s -o bin/python.exe start.c
cat >python <<WRAPPER
#!/usr/bin/env bash
export WINEPREFIX=$folder/prefix WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=;mshtml=;winemenubuilder.exe="
unset DISPLAY
case "\${1:-}" in
--end) exec wineserver -k ;;
--wine) shift && exec wine "\$@" ;;
esac
ulimit -f 131072 # 128 MiB: what never ends must not fill the disk
exec wine $folder/bin/python.exe "\$@"
WRAPPER
chmod +x python
./python --wine wineboot -i </dev/null 2>&1 | cat >wine.log
./python --wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f </dev/null 2>&1 | cat >>wine.log
./python -c 'import sys; print("made", sys.version)' </dev/null 2>&1 | cat
