#!/usr/bin/env bash
# netlab.sh: a LAN of hosts on one machine, in network namespaces of its own.
#
#   h1 h2 ... hN --veth-- [bridge in ns "lan"] --wanlink (rate, delay)-- ns "upstream"
#
# Hosts have 10.77.0.0/16 and fd77::/64 (and link-local) addresses, hK being
# 10.77.(K/256).(K%256) and fd77::K. The lan namespace is their gateway
# (10.77.255.254, fd77::ffff); upstream is 10.78.0.1 / fd78::1 and is reached
# only through the gateway, so multicast (mDNS) never gets there. No interface
# is made in the machine's own namespace and no route leads out of the lab.
#
#   netlab.sh up N                 make it (root; needs iproute2, nftables, go)
#   netlab.sh down                 end what runs in it and take it all away
#   netlab.sh exec WHERE CMD...    WHERE: hK, upstream or lan (exec: same pid)
#   netlab.sh ip WHERE             its IPv4 address
#   netlab.sh partition hK | heal hK     silent cut from everyone (no carrier loss)
#   netlab.sh cut hA hB | join hA hB     silent cut between two hosts
#   netlab.sh split K | unsplit    silent cut between h1..hK and all other hosts
#   netlab.sh linkdown hK | linkup hK    pulled cable (carrier loss)
#   netlab.sh wan WORDS...         settings of the upstream link, at run time:
#                                  rate=Mbit/s delay=ms(one way) loss=% queue=ms,
#                                  up.X= / down.X= for one way; "wan cut", "wan heal"
#   netlab.sh lanrate hK|all RATE|none   tc rate of a host's link, both ways (e.g. 100mbit)
#   netlab.sh loss hK PERCENT      random loss on what a host receives and sends
#   netlab.sh egress [all]         bytes that upstream sent so far (IP bytes)
#   netlab.sh bytes hK             rx and tx bytes of a host's interface
#   netlab.sh status
#
# Environment: NETLAB_NAME (prefix, default "netlab": two labs can stand side by
# side), NETLAB_WAN (default "rate=200 delay=10", so 20 ms there and back),
# NETLAB_CC (TCP congestion control in the lab, default the machine's; only one
# that the machine's net.ipv4.tcp_allowed_congestion_control lists can be had),
# NETLAB_SNOOP=1 (multicast snooping on), NETLAB_NO4=1 / NETLAB_NO6=1,
# NETLAB_STATE (directory for what it keeps between commands), NETLAB_WANLINK
# (the program wanlink; built with go if it is not given).
set -euo pipefail

name=${NETLAB_NAME:-netlab}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=${NETLAB_STATE:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/netlab-$name}

die() { echo "netlab: $*" >&2; exit 1; }
ns() { # the namespace of a word
	case $1 in
	h[1-9]*) echo "$name-$1" ;;
	upstream | up) echo "$name-up" ;;
	lan) echo "$name-lan" ;;
	*) die "no such place: $1" ;;
	esac
}
have() { ip netns list | awk '{print $1}' | grep -qx "$1"; }
all() { ip netns list | awk '{print $1}' | grep -E "^$name-(h[0-9]+|lan|up)$" || true; }
v4() { echo "10.77.$(($1 / 256)).$(($1 % 256))"; }
v6() { printf 'fd77::%x\n' "$1"; }
in_ns() { local n=$1; shift; ip netns exec "$n" "$@"; }
set_sys() { # NS KEY VALUE...: settings under /proc/sys/net, a missing key is skipped
	local n=$1; shift
	in_ns "$n" sh -c 'while [ $# -gt 1 ]; do f=/proc/sys/net/$1; [ ! -e "$f" ] || echo "$2" >"$f"; shift 2; done' sh "$@"
}
common_sys() { # no duplicate address detection, so that addresses work at once
	local kv=(ipv6/conf/all/accept_dad 0 ipv6/conf/default/accept_dad 0 ipv6/conf/default/dad_transmits 0)
	if [ -n "${NETLAB_CC:-}" ]; then
		in_ns "$1" sh -c 'echo "$1" >/proc/sys/net/ipv4/tcp_congestion_control' sh "$NETLAB_CC" 2>/dev/null ||
			die "congestion control $NETLAB_CC is not allowed here: $(cat /proc/sys/net/ipv4/tcp_allowed_congestion_control)"
	fi
	[ -z "${NETLAB_NO6:-}" ] || kv+=(ipv6/conf/all/disable_ipv6 1 ipv6/conf/default/disable_ipv6 1)
	set_sys "$1" "${kv[@]}"
}

# The neighbour (ARP, ND) tables' limits count the entries of all namespaces
# together, and only the machine's own namespace can set them: N hosts that all
# talk to each other need N*N. Kept, and put back by down.
neigh_limit() { # ENTRIES
	local f v
	for f in /proc/sys/net/ipv[46]/neigh/default/gc_thresh[123]; do
		[ -e "$f" ] || continue # another namespace than the machine's own
		v=$(cat "$f")
		[ "$v" -ge "$1" ] && continue
		if echo "$1" 2>/dev/null >"$f"; then echo "$f $v" >>"$state/neigh"; else
			echo "netlab: cannot raise $f ($v < $1): expect neighbour table overflow" >&2
		fi
	done
}

cmd_up() {
	local n=${1:-} k h f
	[[ $n =~ ^[0-9]+$ && $n -ge 1 && $n -le 1000 ]] || die "up N: N from 1 to 1000"
	[ -z "$(all)" ] || die "already up (or left over): netlab.sh down first"
	[ "$(id -u)" = 0 ] || die "needs root"
	mkdir -p "$state"
	rm -f "$state"/{neigh,wan.log}
	trap 'echo "netlab: up failed, taking it away" >&2; cmd_down' EXIT
	local link=${NETLAB_WANLINK:-$state/wanlink}
	[ -x "$link" ] || (cd "$here" && CGO_ENABLED=0 go build -o "$link" ./wanlink)
	neigh_limit $((n * n + 4 * n + 64))

	local L="$name-lan" U="$name-up"
	ip netns add "$L"; common_sys "$L"
	ip netns add "$U"; common_sys "$U"
	set_sys "$L" ipv4/ip_forward 1 ipv6/conf/all/forwarding 1
	ip -n "$L" link set lo up
	ip -n "$U" link set lo up
	ip -n "$L" link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping "${NETLAB_SNOOP:-0}"
	set_sys "$L" bridge/bridge-nf-call-iptables 0 bridge/bridge-nf-call-ip6tables 0 bridge/bridge-nf-call-arptables 0
	[ -n "${NETLAB_NO4:-}" ] || ip -n "$L" addr add 10.77.255.254/16 dev br0
	[ -n "${NETLAB_NO6:-}" ] || ip -n "$L" addr add fd77::ffff/64 dev br0 nodad
	ip -n "$L" link set br0 up

	for ((k = 1; k <= n; k++)); do
		h="$name-h$k"
		ip netns add "$h"; common_sys "$h"
		ip -n "$h" link set lo up
		ip link add eth0 netns "$h" type veth peer name "p$k" netns "$L"
		ip -n "$L" link set "p$k" master br0 up
		[ -n "${NETLAB_NO4:-}" ] || ip -n "$h" addr add "$(v4 $k)/16" brd + dev eth0
		[ -n "${NETLAB_NO6:-}" ] || ip -n "$h" addr add "$(v6 $k)/64" dev eth0 nodad
		ip -n "$h" link set eth0 up
		[ -n "${NETLAB_NO4:-}" ] || ip -n "$h" route add default via 10.77.255.254
		[ -n "${NETLAB_NO6:-}" ] || ip -n "$h" -6 route add default via fd77::ffff
	done

	echo "${NETLAB_WAN:-rate=200 delay=10}" >"$state/wan.conf"
	# A TUN device is born in the namespace in which /dev/net/tun was opened.
	ip netns exec "$L" bash -c 'exec 3<>/dev/net/tun; exec ip netns exec "$1" bash -c '\''exec 4<>/dev/net/tun; shift; exec "$@"'\'' bash "$@"' \
		bash "$U" "$link" -name wan0 -conf "$state/wan.conf" >"$state/wan.log" 2>&1 </dev/null &
	echo $! >"$state/wan.pid"
	for ((k = 0; k < 100; k++)); do
		ip -n "$U" link show wan0 >/dev/null 2>&1 && ip -n "$L" link show wan0 >/dev/null 2>&1 && break
		sleep 0.05
	done
	ip -n "$L" link set wan0 txqueuelen 10000 up || die "no wan0: $(cat "$state/wan.log")"
	ip -n "$U" link set wan0 txqueuelen 10000 up
	if [ -z "${NETLAB_NO4:-}" ]; then
		ip -n "$U" addr add 10.78.0.1 peer 10.78.0.2 dev wan0
		ip -n "$L" addr add 10.78.0.2 peer 10.78.0.1 dev wan0
		ip -n "$U" route add 10.77.0.0/16 dev wan0
	fi
	if [ -z "${NETLAB_NO6:-}" ]; then
		ip -n "$U" addr add fd78::1 peer fd78::2 dev wan0 nodad
		ip -n "$L" addr add fd78::2 peer fd78::1 dev wan0 nodad
		ip -n "$U" -6 route add fd77::/64 dev wan0
	fi
	trap - EXIT
}

end_pids() { # SIGNAL: to every process inside the lab, one by one
	local n p
	for n in $(all); do
		for p in $(ip netns pids "$n" 2>/dev/null); do
			[ "$p" = $$ ] || kill "-$1" "$p" 2>/dev/null || true
		done
	done
}

cmd_down() {
	local n i f v
	end_pids TERM
	for ((i = 0; i < 20; i++)); do
		[ -n "$(for n in $(all); do ip netns pids "$n" 2>/dev/null; done)" ] || break
		sleep 0.1
	done
	end_pids KILL
	for n in $(all); do ip netns del "$n"; done
	if [ -e "$state/neigh" ]; then
		# last raised, first put back: a thresh3 never falls below its thresh1
		while read -r f v; do echo "$v" >"$f" || true; done < <(tac "$state/neigh")
	fi
	rm -rf "$state"
}

# Cuts live in one nft table of the bridge's namespace, there only while used.
cuts_apply() {
	local one pair
	one=$(sort -u "$state/cut1" 2>/dev/null | paste -sd, || true)
	pair=$(sort -u "$state/cut2" 2>/dev/null | paste -sd, || true)
	in_ns "$name-lan" nft -f - <<-X
		table bridge netlab
		delete table bridge netlab
		table bridge netlab {
			set one { type ifname; ${one:+elements = { $one \}} }
			set pair { type ifname . ifname; ${pair:+elements = { $pair \}} }
			chain f { type filter hook forward priority 0; iifname @one drop; oifname @one drop; iifname . oifname @pair drop; }
			chain i { type filter hook input priority 0; iifname @one drop; }
			chain o { type filter hook output priority 0; oifname @one drop; }
		}
	X
	[ -n "$one$pair" ] || in_ns "$name-lan" nft delete table bridge netlab
}
port() { ns "$1" >/dev/null; have "$name-$1" || die "no such host: $1"; echo "\"p${1#h}\""; }
drop_line() { [ ! -e "$2" ] || { grep -vxF -- "$1" "$2" >"$2.new" || true; mv "$2.new" "$2"; }; }

cmd_partition() { local h; for h in "$@"; do port "$h" >>"$state/cut1"; done; cuts_apply; }
cmd_heal() { local h; for h in "$@"; do drop_line "$(port "$h")" "$state/cut1"; done; cuts_apply; }
cmd_cut() { echo "$(port "$1") . $(port "$2")" >>"$state/cut2"; echo "$(port "$2") . $(port "$1")" >>"$state/cut2"; cuts_apply; }
cmd_join() { drop_line "$(port "$1") . $(port "$2")" "$state/cut2"; drop_line "$(port "$2") . $(port "$1")" "$state/cut2"; cuts_apply; }
cmd_split() {
	local n=$1 h o
	local -a low=() high=()
	for h in $(all | sed -n "s/^$name-h//p"); do
		if [ "$h" -le "$n" ]; then low+=("$h"); else high+=("$h"); fi
	done
	for h in "${low[@]}"; do for o in "${high[@]}"; do
		echo "\"p$h\" . \"p$o\""
		echo "\"p$o\" . \"p$h\""
	done; done >>"$state/cut2"
	cuts_apply
}
cmd_unsplit() { rm -f "$state/cut2"; cuts_apply; }
cmd_linkdown() { ip -n "$name-lan" link set "p${1#h}" down; }
cmd_linkup() { ip -n "$name-lan" link set "p${1#h}" up; }

cmd_wan() {
	case ${1:-} in
	"") cat "$state/wan.conf"; return ;;
	cut) [ -e "$state/wan.kept" ] || cp "$state/wan.conf" "$state/wan.kept"; set -- loss=100 ;;
	heal) [ -e "$state/wan.kept" ] || return 0; set -- $(cat "$state/wan.kept"); rm "$state/wan.kept" ;;
	esac
	echo "$*" >"$state/wan.conf"
	kill -HUP "$(cat "$state/wan.pid")"
}

cmd_lanrate() {
	local h p r=$2
	if [ "$1" = all ]; then
		for h in $(all | sed -n "s/^$name-\(h[0-9]*\)$/\1/p"); do cmd_lanrate "$h" "$r"; done
		return
	fi
	h="$name-$1" p="p${1#h}"
	ip netns exec "$h" tc qdisc del dev eth0 root 2>/dev/null || true
	ip netns exec "$name-lan" tc qdisc del dev "$p" root 2>/dev/null || true
	[ "$r" = none ] && return
	# burst above 64 KiB: tbf cuts up larger offloaded packets in software otherwise
	ip netns exec "$h" tc qdisc add dev eth0 root tbf rate "$r" burst 128kb latency 50ms
	ip netns exec "$name-lan" tc qdisc add dev "$p" root tbf rate "$r" burst 128kb latency 50ms
}

cmd_loss() {
	local h="$name-$1" n
	n=$(awk -v p="$2" 'BEGIN { printf "%d", p * 100 }')
	in_ns "$h" nft -f - <<-X
		table inet netlab
		delete table inet netlab
	X
	[ "$n" -gt 0 ] || return 0
	in_ns "$h" nft -f - <<-X
		table inet netlab {
			chain i { type filter hook input priority 0; iifname eth0 numgen random mod 10000 < $n drop; }
			chain o { type filter hook output priority 0; oifname eth0 numgen random mod 10000 < $n drop; }
		}
	X
}

stat() { in_ns "$1" cat "/sys/class/net/$2/statistics/$3"; }
cmd_egress() {
	local w
	[ "${1:-}" = all ] || { stat "$name-up" wan0 tx_bytes; return; }
	for w in tx_bytes rx_bytes tx_packets rx_packets tx_dropped rx_dropped; do
		echo "$w $(stat "$name-up" wan0 $w)"
	done
	kill -USR1 "$(cat "$state/wan.pid")"; sleep 0.1; tail -n 2 "$state/wan.log"
}
cmd_bytes() { echo "rx_bytes $(stat "$name-$1" eth0 rx_bytes) tx_bytes $(stat "$name-$1" eth0 tx_bytes)"; }

cmd_status() {
	local n
	for n in $(all); do echo "$n $(ip -n "$n" -br -4 addr | awk '$1 != "lo" { printf "%s %s  ", $1, $3 }') pids: $(ip netns pids "$n" | paste -sd' ')"; done
	[ ! -e "$state/wan.conf" ] || echo "wan: $(cat "$state/wan.conf")"
	[ ! -s "$state/cut1" ] || echo "partitioned: $(paste -sd' ' "$state/cut1")"
	[ ! -s "$state/cut2" ] || echo "cut: $(paste -sd, "$state/cut2")"
}

verb=${1:-}
[ -n "$verb" ] || { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
shift
case $verb in
up | down | partition | heal | cut | join | split | unsplit | linkdown | linkup | wan | lanrate | loss | egress | bytes | status) "cmd_$verb" "$@" ;;
exec) n=$(ns "$1"); shift; exec ip netns exec "$n" "$@" ;;
ip) case $1 in upstream | up) echo 10.78.0.1 ;; lan) echo 10.77.255.254 ;; *) v4 "${1#h}" ;; esac ;;
*) die "unknown verb: $verb" ;;
esac
