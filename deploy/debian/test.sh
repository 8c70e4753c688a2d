#!/bin/sh
# Installs the package into a copy of a bare Debian tree, starts the daemon by hand, lets
# the tree's own Nix ask it, and removes the package. Needs root and a tree of `make chroots`.
#
#	deploy/debian/test.sh [TREE]    default: /var/cache/nixp2p/chroot/trixie
set -eu
cd "$(dirname "$0")/../.."

tree=${1:-/var/cache/nixp2p/chroot/trixie}
if [ "$(id -u)" -ne 0 ] || [ ! -x "$tree/usr/bin/dpkg" ]; then
	echo "$0: needs root and a Debian tree at $tree ('make chroots')" >&2
	exit 1
fi
deb=dist/nixp2p_$(cat VERSION)_$(dpkg --print-architecture).deb
[ -f "$deb" ] || { echo "$0: there is no $deb: run 'make deb' first" >&2; exit 1; }

tmp=$(mktemp -d)
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
cp -a "$tree" "$tmp/root"
cp "$deb" "$tmp/root/nixp2p.deb"
cp deploy/debian/test-inside.sh "$tmp/root/test-inside.sh"

# Mounts, processes and network of its own: nothing is left behind, nothing goes out.
unshare --mount --pid --fork --net sh -eu -c '
	ip link set lo up
	mount -t proc proc "$1/proc"
	exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C bash -eu /test-inside.sh' sh "$tmp/root"
echo "ok: installed, started, asked, removed, purged"
