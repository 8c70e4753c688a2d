#!/bin/sh
# Computes vendorHash of package.nix the way buildGoModule does: the hash of what
# `go mod vendor` makes, packed by Nix. Needs Go, Nix and the modules (GOFLAGS and GOPROXY
# as anywhere).
#
#	nix/vendor-hash.sh           print it
#	nix/vendor-hash.sh --check   fail if package.nix has another one
#	nix/vendor-hash.sh --write   write it into package.nix
set -eu
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
go mod vendor -o "$tmp/vendor"
hash=$(nix --extra-experimental-features nix-command hash path "$tmp/vendor")

have=$(sed -n 's/^ *vendorHash = "\(.*\)";$/\1/p' nix/package.nix)
case ${1-} in
--check)
	if [ "$have" != "$hash" ]; then
		echo "nix/package.nix has vendorHash $have, go.mod needs $hash: run 'make vendor-hash'" >&2
		exit 1
	fi
	;;
--write)
	sed -i "s|^\( *vendorHash = \"\).*\(\";\)$|\1$hash\2|" nix/package.nix
	echo "$hash"
	;;
"") echo "$hash" ;;
*)
	echo "usage: $0 [--check|--write]" >&2
	exit 2
	;;
esac
