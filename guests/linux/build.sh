#!/bin/sh
# A small Linux and its initramfs, from Debian's packages. See README.md beside this file.
set -eu

usage() {
    cat <<'TEXT'
usage: build.sh 64|32 [--smp] [--config-only] [--out DIR]

Builds bzImage-64 (or -32, -smp behind it) and initrd-64.cpio.gz in DIR (build/).

  --smp           several processors, ACPI, PCI
  --config-only   end when the configuration is made and checked

  LINUX_SOURCE    the sources: a directory, or a tar archive
                  (/usr/src/linux-source-6.1.tar.xz, of the package linux-source-6.1)
  BUSYBOX         a static busybox for the guest (/bin/busybox, of busybox-static)
TEXT
}

die() { echo "build.sh: $1" >&2; exit 1; }

here=$(cd "$(dirname "$0")" && pwd)
bits='' smp='' config_only='' out=build
while [ $# -gt 0 ]; do
    case $1 in
        64 | 32) bits=$1 ;;
        --smp) smp=-smp ;;
        --config-only) config_only=yes ;;
        --out) [ $# -gt 1 ] || die "--out needs a directory"; out=$2; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "what is '$1'?" ;;
    esac
    shift
done
[ -n "$bits" ] || { usage >&2; exit 1; }

missing=''
for tool in gcc make flex bison bc lz4 gzip; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
echo '#include <libelf.h>' | gcc -E - >/dev/null 2>&1 || missing="$missing libelf"
[ -z "$missing" ] || die "missing:$missing; apt-get install gcc make flex bison bc lz4 gzip libelf-dev"

mkdir -p "$out"
out=$(cd "$out" && pwd)
source=${LINUX_SOURCE:-/usr/src/linux-source-6.1.tar.xz}
if [ -f "$source" ]; then
    mkdir -p "$out/source"
    [ -f "$out/source/Makefile" ] || tar -xf "$source" -C "$out/source" --strip-components=1
    source=$out/source
fi
[ -f "$source/Makefile" ] || die "no sources at $source; apt-get install linux-source-6.1, or set LINUX_SOURCE"

arch=x86_64
[ "$bits" = 64 ] || arch=i386
tree=$out/tree-$bits$smp
fragments="$here/base.config $here/$bits.config"
[ -z "$smp" ] || fragments="$fragments $here/smp.config"

# The same sources and tools give the same bytes.
export KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=vmmsim KBUILD_BUILD_HOST=vmmsim
kernel() { make -s -C "$source" O="$tree" ARCH="$arch" "$@"; }

kernel tinyconfig >/dev/null
cat $fragments >>"$tree/.config"
kernel olddefconfig 2>/dev/null
# kconfig drops silently what depends on something that is off.
grep -h '^CONFIG_' $fragments | while read -r line; do
    grep -qxF "$line" "$tree/.config" || die "the configuration has no $line"
done
echo "configuration: $tree/.config"
[ -z "$config_only" ] || exit 0

busybox=${BUSYBOX:-/bin/busybox}
[ -f "$busybox" ] || die "no $busybox; apt-get install busybox-static, or set BUSYBOX"
# Byte 4 of an ELF file: 1 for 32 bits, 2 for 64.
class=$(od -An -tu1 -j4 -N1 "$busybox" | tr -d ' ')
[ "$class" -le $((bits / 32)) ] || die "$busybox is for 64 bits; give one for 32 with BUSYBOX (busybox-static:i386)"

kernel -j"$(nproc)" bzImage
cp "$tree/arch/x86/boot/bzImage" "$out/bzImage-$bits$smp"

gcc -O2 -o "$out/gen_init_cpio" "$source/usr/gen_init_cpio.c"
sed -e "s|@BUSYBOX@|$busybox|" -e "s|@INIT@|$here/init|" "$here/initramfs.list" >"$out/initramfs-$bits.list"
for name in sh mount uname cat sleep sha256sum awk grep echo ls setsid cttyhack reboot poweroff; do
    echo "slink /bin/$name busybox 0777 0 0"
done >>"$out/initramfs-$bits.list"
"$out/gen_init_cpio" -t 0 "$out/initramfs-$bits.list" | gzip -9n >"$out/initrd-$bits.cpio.gz"

ls -l "$out/bzImage-$bits$smp" "$out/initrd-$bits.cpio.gz"
echo "vmmsim run --kernel $out/bzImage-$bits$smp --initrd $out/initrd-$bits.cpio.gz" \
    "--append 'console=ttyS0 panic=-1' -m 128M"
