#!/bin/sh
# fetch-test-nginx.sh FOLDER: unpack the distribution's NGINX into FOLDER for the tests, without installing it: nothing is
# started, no port is taken. Where that is impossible the tests that need NGINX are skipped, so this never fails.
set -u
folder=$1

if command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || [ -x "$folder/usr/sbin/nginx" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "NGINX is not installed and there is no apt to fetch it with: tests that need it are skipped." >&2
    exit 0
fi
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
download() { (cd "$packages" && apt-get -qq download nginx >/dev/null 2>&1); }
if ! download; then
    # A fresh system has no lists of packages yet; only root may fetch them.
    [ "$(id -u)" -eq 0 ] && apt-get -qq update >/dev/null 2>&1 && download
fi
for package in "$packages"/nginx_*.deb; do
    [ -e "$package" ] && mkdir -p "$folder" && dpkg-deb --extract "$package" "$folder"
done
if ! "$folder/usr/sbin/nginx" -v 2>/dev/null; then
    echo "NGINX could not be fetched: tests that need it are skipped. Installing nginx-light helps." >&2
    rm -rf "$folder"
fi
exit 0
