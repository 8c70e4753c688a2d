#!/bin/sh
# Makes dist/nixp2p_VERSION_ARCH.deb with `make install` and dpkg-deb alone. The same
# sources make the same bytes.
#
#	deploy/debian/build.sh [ARCH]    default: this machine's
set -eu
export PATH="$PATH:/usr/local/go/bin"
cd "$(dirname "$0")/../.."
umask 022

compress=${COMPRESS:-xz} # none: for a test on this machine
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1}"
version=$(cat VERSION)
here=$(dpkg --print-architecture)
arch=${1:-$here}
out=dist/nixp2p_${version}_$arch.deb

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
root=$tmp/root

build() { # ARCH OUT
	env -u GOFLAGS -u GOEXPERIMENT CGO_ENABLED=0 GOOS=linux GOARCH="$1" \
		go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.released=$version" -o "$2" ./cmd/nixp2p
}
build "$here" "$tmp/nixp2p"
bin=$tmp/nixp2p
if [ "$arch" != "$here" ]; then
	bin=$tmp/nixp2p-$arch
	build "$arch" "$bin"
fi

make --no-print-directory -s install DESTDIR="$root" PREFIX=/usr BIN="$bin" HOSTBIN="$tmp/nixp2p" \
	UNITDIR=/usr/lib/systemd/system ZSHDIR=/usr/share/zsh/vendor-completions
gzip -9n "$root"/usr/share/man/man1/*.1
doc=$root/usr/share/doc/nixp2p
mkdir -p "$doc"
cp LICENSE "$doc/copyright"
cp docs/*.md "$doc/"
{
	echo '# All keys with their defaults. What differs on this machine goes into'
	echo '# /etc/nixp2p/config.toml, which need not exist.'
	STATE_DIRECTORY=/var/lib/nixp2p CACHE_DIRECTORY=/var/cache/nixp2p "$tmp/nixp2p" config show --config /dev/null |
		sed -e 's/ # default$//' -e 's/^/# /'
} >"$doc/config.toml.example"

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: nixp2p
Version: $version
Architecture: $arch
Maintainer: The nixp2p authors <nixp2p@users.noreply.github.com>
Installed-Size: $(du -ks --exclude=DEBIAN "$root" | cut -f1)
Recommends: ca-certificates
Suggests: nix-bin
Section: net
Priority: optional
Homepage: https://github.com/nixp2p/nixp2p
Description: peer-to-peer binary cache for Nix
 Every machine is a binary cache for its neighbours: it answers Nix from its own
 store, from peers on the same site, or from the upstream caches, in this order. It
 serves nothing that a trusted key has not signed.
 .
 To make Nix use it: sudo nixp2p setup --apply
END
install -m 0755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$root/DEBIAN/"
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p dist
dpkg-deb --root-owner-group "-Z$compress" --build "$root" "$out" >/dev/null
echo "$out"
