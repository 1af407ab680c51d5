#!/bin/sh
# Installs pagebox on a machine with systemd and without apt, from the folder that the tarball unpacks to:
#
#   ./install.sh               install, or upgrade: the configuration stays, and the server drains first
#   ./install.sh --uninstall   remove the program; configuration, keys, models and state stay
set -eu

here=$(cd "$(dirname "$0")" && pwd)
state=/var/lib/pagebox
installed=$state/installed-files

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "run it as root"
command -v systemd-sysusers >/dev/null || fail "this machine has no systemd"

uninstall() {
    [ -e "$installed" ] || fail "pagebox was not installed with install.sh"
    sh "$here/prerm" remove
    while read -r file; do
        [ "$file" = /etc/pagebox/pagebox.yaml ] || rm -f "$file"
    done <"$installed"
    # Folders of its own; those of others are not empty.
    sort -r "$installed" | while read -r file; do
        rmdir -p "$(dirname "$file")" 2>/dev/null || true
    done
    rm -rf /opt/pagebox
    rm -f "$installed"
    sh "$here/postrm" remove
    echo "pagebox is removed. /etc/pagebox and $state are as they were."
}

check() {
    python=$(find "$here/root/opt/pagebox/lib" -maxdepth 1 -name 'python3.*' -printf '%f')
    command -v "$python" >/dev/null || fail "it needs $python with its standard library; install that first"
    [ "$(readlink -f "$(command -v "$python")")" = "/usr/bin/$python" ] || fail "$python has to be in /usr/bin"
    command -v nginx >/dev/null || echo "install.sh: NGINX is not installed; without it the server has no TLS" >&2
}

install() {
    check
    old=
    if [ -e "$installed" ]; then
        old=upgrade
        sh "$here/prerm" upgrade
        # What the new version no longer has must not be imported by accident.
        rm -rf /opt/pagebox
    fi
    mkdir -p "$state"
    (cd "$here/root" && find . ! -type d | sed 's/^\.//') >"$installed.new"
    if [ -e /etc/pagebox/pagebox.yaml ]; then
        cp "$here/root/etc/pagebox/pagebox.yaml" /etc/pagebox/pagebox.yaml.new
        (cd "$here/root" && tar -cf - --exclude=./etc/pagebox/pagebox.yaml .) | tar -xf - -C / --keep-directory-symlink
    else
        (cd "$here/root" && tar -cf - .) | tar -xf - -C / --keep-directory-symlink
    fi
    mv "$installed.new" "$installed"
    if [ -n "$old" ]; then
        sh "$here/postinst" configure "$old"
    else
        sh "$here/postinst" configure
    fi
}

case ${1-} in
    "") install ;;
    --uninstall) uninstall ;;
    *) fail "unknown argument $1; without one it installs, with --uninstall it removes" ;;
esac
