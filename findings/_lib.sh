# Sourced by every finding. It makes a temporary folder, puts pinned packages into it, and compares
# what a program says with what it said when the finding was written.
#
#   pip_get NAME==VERSION ...     Python packages, importable by `py`
#   deb_get TOOL NAME=VERSION ... Debian packages unpacked into the folder (or the installed ones)
#   py [FILE]                     python3 with those packages; the program comes from stdin
#   see WANTED                    prints stdin and compares it with WANTED, line by line
#
# Exit codes: 0 still so, 1 changed, 77 the tool cannot be had here.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
umask 022
export LC_ALL=C TZ=UTC PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
SITE=$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")
trap 'rm -rf "$SITE"' EXIT
mkdir "$SITE/work" "$SITE/py" "$SITE/deb"
cd "$SITE/work"

skip() {
    echo "skipped: $1"
    exit 77
}

pip_get() {
    python3 -m pip install -q --root-user-action=ignore --target "$SITE/py" "$@" >"$SITE/pip.log" 2>&1 ||
        { tail -3 "$SITE/pip.log"; skip "pip cannot install $*"; }
}

py() {
    PYTHONPATH="$SITE/py" timeout 120 python3 "$@"
}

# Debian's packages of bookworm on amd64. What is installed in another version is not used.
deb_get() {
    local tool=$1 package name
    shift
    command -v dpkg-deb >/dev/null || skip "not a Debian machine"
    for package in "$@"; do
        name=${package%%=*}
        if [ "$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$name" 2>/dev/null)" = "installed ${package#*=}" ]; then
            continue
        fi
        (cd "$SITE/deb" && timeout 120 apt-get -qq download "$package" >"$SITE/apt.log" 2>&1) ||
            skip "apt-get cannot download $package (apt-get update first?)"
        dpkg-deb -x "$SITE/deb/$name"_*.deb "$SITE/deb/root"
    done
    if [ -d "$SITE/deb/root" ]; then
        export PATH="$SITE/deb/root/usr/bin:$SITE/deb/root/usr/sbin:$PATH"
        LD_LIBRARY_PATH=$(find "$SITE/deb/root" -type d -name '*-linux-gnu' | paste -sd:)
        export LD_LIBRARY_PATH
    fi
    command -v "$tool" >/dev/null || skip "$* has no $tool"
}

see() {
    local saw
    saw=$(cat)
    printf '%s\n' "$saw"
    if [ "$saw" != "$1" ]; then
        echo "--- CHANGED (< as written, > now):"
        diff <(printf '%s\n' "$1") <(printf '%s\n' "$saw") || true
        exit 1
    fi
}

# Debian's binutils 2.40-2: as, ld, objdump, objcopy, readelf.
gnu_get() {
    deb_get objdump binutils=2.40-2 binutils-common=2.40-2 binutils-x86-64-linux-gnu=2.40-2 libbinutils=2.40-2
}

# For packages too large to unpack for one question: the installed one, in this version, or none.
deb_here() {
    [ "$(dpkg-query -W -f '${db:Status-Status} ${Version}' "${1%%=*}" 2>/dev/null)" = "installed ${1#*=}" ] ||
        skip "$1 is not installed"
}

# For what belongs to one release of CPython.
python_is() {
    python3 -c "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$1'.split('.'))))" ||
        skip "python3 is not CPython $1"
}
