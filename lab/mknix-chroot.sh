#!/bin/sh
# Makes a minimal Debian tree with the Nix client of a Debian release in it, so
# that tests and measurements can run other versions of Nix than the machine's.
# It sets up no daemon and no store: the tests bring their own.
#
#	lab/mknix-chroot.sh DIST DIR [PACKAGE...]     DIST: trixie (Nix 2.26), sid (Nix 2.34)
#
# The tests look for the trees in /var/cache/nixp2p/chroot/{trixie,sid}, or where
# NIXP2P_NIX_CHROOT_226 and NIXP2P_NIX_CHROOT_234 say. Needs root, debootstrap and
# a Debian mirror, which is taken from this machine's own apt configuration
# (MIRROR=URL overrides it). A complete tree is left alone; a tree only gets its
# name when its Nix works.
set -eu

if [ $# -lt 2 ]; then
	echo "usage: $0 DIST DIR [PACKAGE...]" >&2
	exit 2
fi
dist=$1
dir=$2
shift 2

# Nix reads /proc/self/exe at its start. A mount namespace of its own for each
# command leaves no mount behind, however the command ends.
in_tree() {
	unshare --mount sh -c 'd=$1; shift; mount -t proc proc "$d/proc"; mount -t devpts devpts "$d/dev/pts"
		exec chroot "$d" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"' \
		in_tree "$@"
}

if [ "$(id -u)" -ne 0 ]; then
	echo "$0: needs root (chroot, mount)" >&2
	exit 1
fi
if [ -x "$dir/usr/bin/nix" ]; then
	in_tree "$dir" nix --version
	exit 0
fi

mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Origin: Debian' |
	awk '$2 !~ /-(security|updates|backports)$/ { print $1; exit }')}
if [ -z "$mirror" ]; then
	echo "$0: apt knows no Debian mirror (apt-get update?); set MIRROR" >&2
	exit 1
fi

tmp=$dir.tmp.$$
mkdir -p "$(dirname "$dir")"
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

# Only the base is left to debootstrap: an old one resolves the dependencies of a
# newer release wrongly, the release's own apt does not.
debootstrap --variant=minbase "$dist" "$tmp" "$mirror" >&2
printf '#!/bin/sh\nexit 101\n' >"$tmp/usr/sbin/policy-rc.d" # start no service in there
chmod 755 "$tmp/usr/sbin/policy-rc.d"
# A mirror of a release in the making may not have been signed for days.
echo 'Acquire::Check-Valid-Until "false";' >"$tmp/etc/apt/apt.conf.d/99valid-until"
in_tree "$tmp" apt-get -q -y -f install >&2
in_tree "$tmp" apt-get -q -y --no-install-recommends install nix-bin "$@" >&2
in_tree "$tmp" apt-get clean
rm -rf "$tmp"/var/lib/apt/lists/*

in_tree "$tmp" nix --version >&2
mv "$tmp" "$dir"
trap - EXIT
in_tree "$dir" nix --version
