package admin

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// FormatBytes writes n for people, with two or three digits that matter: "9.8 MiB", "312 GiB".
func FormatBytes(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	x, unit := float64(n)/(1<<10), "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB", "PiB", "EiB"} {
		if x < 999.5 {
			break
		}
		x, unit = x/(1<<10), u
	}
	if x < 9.95 {
		return fmt.Sprintf("%.1f %s", x, unit)
	}
	return fmt.Sprintf("%.0f %s", x, unit)
}

// formatCount writes n with its thousands apart.
func formatCount[T int | int64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural writes n with a noun: "1 request", "2,000 requests".
func plural(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return formatCount(n) + " " + noun
}

// FormatDuration writes seconds for people.
func FormatDuration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// FormatClock writes when something was, as seen at now: a clock time, with the day in front
// when it was another one.
func FormatClock(t, now time.Time) string {
	if t.IsZero() {
		return "–"
	}
	t, now = t.Local(), now.Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2 Jan 15:04")
}

// FormatMS writes milliseconds with two digits.
func FormatMS(ms float64) string {
	switch {
	case ms <= 0:
		return "–"
	case ms < .1:
		return "< 0.1 ms"
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// pathName returns the part of a store path that people know it by.
func pathName(storePath string) string {
	p, err := nix.ParseStorePath(storePath)
	if err != nil {
		return storePath
	}
	return p.Name()
}

// pathHash returns the store hash, "" when it is no store path.
func pathHash(storePath string) string {
	p, err := nix.ParseStorePath(storePath)
	if err != nil {
		return ""
	}
	return p.Hash().String()
}

// ShortID returns the end of a peer ID: the begin is the same for all.
func ShortID(id string) string {
	const shown = 8
	if r := []rune(id); len(r) > shown {
		return "…" + string(r[len(r)-shown:])
	}
	return id
}

// host returns the address of a multiaddr without its protocols, or all of it.
func host(multiaddr string) string {
	if words := strings.Split(multiaddr, "/"); len(words) > 2 && words[0] == "" && words[2] != "" {
		switch words[1] {
		case "ip4", "ip6", "dns", "dns4", "dns6":
			return words[2]
		}
	}
	return multiaddr
}

// ParseAsked reads how a person names a store path: the path, a path inside it, a base name, or a hash.
func ParseAsked(s string) (nix.StoreHash, error) {
	base, inStore := strings.CutPrefix(s, nix.StoreDir+"/")
	if !inStore && strings.HasPrefix(s, "/") {
		return nix.StoreHash{}, fmt.Errorf("it is not in %s", nix.StoreDir)
	}
	base, _, _ = strings.Cut(base, "/")
	if p, err := nix.ParseBaseName(base); err == nil {
		return p.Hash(), nil
	}
	h, err := nix.ParseStoreHash(base)
	if err != nil {
		return nix.StoreHash{}, fmt.Errorf("it looks like %s/6lwdzpbig6zz8678blcqr5f5q1caxjw2-hello-2.12, or is the hash in it alone", nix.StoreDir)
	}
	return h, nil
}
