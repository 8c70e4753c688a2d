# The part of test.sh that runs in the tree, by bash, from which a TCP connection can be made
# without more programs.

step() { printf '\n# %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
get() { # PATH
	{ printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3 && cat <&3; } 3<>/dev/tcp/127.0.0.1/7654
}
left() { find / -xdev -name '*nixp2p*' ! -name nixp2p.deb ! -path '/proc/*' ! -path '/var/log/*' ! -path '/var/lib/dpkg/*' "$@"; }

step dpkg -i
[ ! -d /run/systemd/system ] || fail "systemd runs in here"
dpkg -i /nixp2p.deb
nixp2p version
for unit in nixp2p.socket:sockets nixp2p.service:multi-user; do
	if command -v deb-systemd-helper >/dev/null; then
		[ -L "/etc/systemd/system/${unit#*:}.target.wants/${unit%:*}" ] || fail "${unit%:*} is not enabled"
	fi
done
dpkg -V nixp2p

step start by hand
start=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/nixp2p.service)
echo "$start"
$start 2>/tmp/log &
daemon=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
	if get / >/dev/null 2>&1; then break; fi
	sleep 0.5
done

step what Nix asks
get /nix-cache-info | tee /tmp/info
grep -q '^Priority: 30' /tmp/info || fail "no priority"
get /00000000000000000000000000000000.narinfo | head -1 | tee /tmp/miss
grep -q ' 404 ' /tmp/miss || fail "a miss is not a 404"
if command -v nix >/dev/null; then
	nix --extra-experimental-features nix-command store ping --store http://127.0.0.1:7654
fi
nixp2p status | head -5
[ -d /var/lib/nixp2p ] || fail "no state directory"

step stop
kill -TERM $daemon
wait $daemon || fail "ends with $?: $(cat /tmp/log)"

step install once more over it
dpkg -i /nixp2p.deb

step remove, with nix.conf changed by setup
mkdir -p /etc/nix /etc/nixp2p
echo 'log-level = "debug"' >/etc/nixp2p/config.toml
printf 'max-jobs = 2\n# the last line has no end' >/etc/nix/nix.conf
cp /etc/nix/nix.conf /tmp/nix.conf
nixp2p setup --apply
grep -q 'http://127.0.0.1:7654' /etc/nix/nix.conf || fail "setup changed nothing"
dpkg -r nixp2p
cmp /tmp/nix.conf /etc/nix/nix.conf || fail "removal left nix.conf changed"
[ ! -e /usr/bin/nixp2p ] || fail "the program is still there"
[ -d /var/lib/nixp2p ] || fail "removal took the state"

step remove, with nix.conf changed by hand
dpkg -i /nixp2p.deb
echo 'substituters = http://127.0.0.1:7654 https://cache.nixos.org' >/etc/nix/nix.conf
dpkg -r nixp2p
if grep -q 127.0.0.1:7654 /etc/nix/nix.conf; then fail "Nix still asks"; fi
grep -q https://cache.nixos.org /etc/nix/nix.conf || fail "removal took another cache"
rm /etc/nix/nix.conf

step purge
dpkg -P nixp2p
[ -z "$(left)" ] || fail "left behind: $(left)"
