package nix

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxCacheInfo is the largest nix-cache-info that is read: real ones have under 100
// bytes; a captive portal's page is larger and has no fields anyway.
const MaxCacheInfo = 64 << 10

// CacheInfo is the text at nix-cache-info.
type CacheInfo struct {
	StoreDir      string // "" means that the cache does not say
	WantMassQuery bool
	Priority      int // lower is asked first; 0 when absent, as Nix has it since 2.4
}

// ParseCacheInfo reads the text as Nix does: lines without a colon and unknown keys are
// ignored, values are trimmed. A Priority that is not a number is an error.
func ParseCacheInfo(text []byte) (CacheInfo, error) {
	var c CacheInfo
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "StoreDir":
			c.StoreDir = value
		case "WantMassQuery":
			c.WantMassQuery = value == "1"
		case "Priority":
			n, err := strconv.Atoi(value)
			if err != nil {
				return CacheInfo{}, fmt.Errorf("nix-cache-info: priority %q is not a number", clip(value))
			}
			c.Priority = n
		}
	}
	return c, nil
}

// Text returns the text that ParseCacheInfo reads.
func (c CacheInfo) Text() []byte {
	mass := 0
	if c.WantMassQuery {
		mass = 1
	}
	return fmt.Appendf(nil, "StoreDir: %s\nWantMassQuery: %d\nPriority: %d\n", c.StoreDir, mass, c.Priority)
}
