package config

import (
	"math/big"
	"strconv"
	"strings"
)

// maxSize keeps sums of sizes within an int64.
const maxSize = 1 << 60

// units are the factors of size units, in lower case. A bare letter is binary, as with
// most tools that take sizes of storage.
var units = map[string]uint64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	"p": 1 << 50, "pib": 1 << 50, "pb": 1e15,
}

// rateUnits are bits a second, which lines are sold by, in bytes.
var rateUnits = map[string]uint64{
	"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8,
}

// ParseSize reads a number of bytes: "10GiB", "1.5 GB", "500M", "4096".
func ParseSize(s string) (int64, error) {
	n, ok := scaled(s, units)
	if !ok {
		return 0, wrong("write a number and a unit, such as 10GiB or 500MB", "%q is not a size", s)
	}
	return n, nil
}

// ParseRate reads bytes a second: "20MB/s", "512KiB/s", "100Mbit/s". It is at least 1.
func ParseRate(s string) (int64, error) {
	amount, ok := strings.CutSuffix(strings.TrimSpace(s), "/s")
	n, good := scaled(amount, rateUnits)
	if !good {
		n, good = scaled(amount, units)
	}
	if !ok || !good {
		return 0, wrong("write a number, a unit and /s, such as 20MB/s or 100Mbit/s", "%q is not a rate", s)
	}
	if n < 1 {
		return 0, wrong("leave it out for no limit; p2p = false is for no peers", "%q is less than a byte a second", s)
	}
	return n, nil
}

// scaled reads a decimal number followed by one of the units. What is less than one byte
// is left out.
func scaled(s string, units map[string]uint64) (int64, bool) {
	s = strings.TrimSpace(s)
	end := strings.LastIndexAny(s, "0123456789") + 1
	unit, ok := units[strings.ToLower(strings.TrimSpace(s[end:]))]
	if !ok {
		return 0, false
	}
	number := s[:end]
	if len(number) > 40 || strings.Trim(number, "0123456789.") != "" || strings.Trim(number, ".") != number {
		return 0, false
	}
	n, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, false
	}
	n.Mul(n, new(big.Rat).SetUint64(unit))
	whole := new(big.Int).Quo(n.Num(), n.Denom())
	return whole.Int64(), whole.IsInt64() && whole.Int64() <= maxSize
}

// FormatSize writes n bytes exactly, in the largest unit that divides it; ParseSize reads
// it back.
func FormatSize(n int64) string {
	for _, u := range []string{"PiB", "TiB", "GiB", "MiB", "KiB", "PB", "TB", "GB", "MB", "kB"} {
		f := int64(units[strings.ToLower(u)])
		if n > 0 && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + u
		}
	}
	return strconv.FormatInt(n, 10)
}
